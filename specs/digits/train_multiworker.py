"""Train on handwritten digits in the workers of TF_CONFIG with MultiWorkerMirroredStrategy and Keras.

Every worker runs this whole script, and in every step all of them average their gradients. Without TF_CONFIG the
script trains in one process.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import tensorflow as tf
from digits import (
    MODEL,
    Digits,
    EpochLine,
    build_network,
    hash_weights,
    load_digits,
    measure_accuracy,
    parse_arguments,
    report,
)


def is_chief(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> bool:
    """Return whether this is the process that saves: the chief, or worker 0 where the cluster has no chief."""
    resolver = strategy.cluster_resolver
    if resolver.task_type != "worker":
        return True
    return resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs


def make_dataset(digits: Digits, batch_size: int) -> tf.data.Dataset:
    """Return endless shuffled batches, of which each worker takes its own share of the images (DATA: not of files)."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = tf.data.Dataset.from_tensor_slices((digits.train_images, digits.train_labels))
    return dataset.shuffle(len(digits.train_images)).repeat().batch(batch_size).with_options(options)


def require_identical_weights(strategy: tf.distribute.MultiWorkerMirroredStrategy, network: tf.keras.Model) -> None:
    """Gather the hash of the weights from all workers; end every worker with 1 where two differ."""
    own = tf.constant([list(hash_weights(network))], tf.int32)
    every = strategy.gather(strategy.experimental_distribute_values_from_function(lambda _: own), axis=0)
    hashes = [bytes(row).hex()[:12] for row in every.numpy().astype("uint8")]
    if len(set(hashes)) > 1:
        sys.exit(f"error: the weights differ between workers: {', '.join(hashes)}")
    print(f"weights {hashes[0]} identical on {len(hashes)} workers", flush=True)


def save(network: tf.keras.Model, chief: bool) -> None:
    """Save the model. All workers must take part, but only the chief's copy is kept."""
    if chief:
        network.save(MODEL)
        return
    scratch = Path(tempfile.mkdtemp())
    network.save(scratch / "model")
    shutil.rmtree(scratch)


def leave_together(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
    """Wait for the other workers: one that leaves early makes the rest log errors about it."""
    here = strategy.experimental_distribute_values_from_function(lambda _: tf.constant([1]))
    strategy.gather(here, axis=0)


def main() -> None:
    """Train together with the other workers; compare the weights; save; report."""
    arguments = parse_arguments(__doc__)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # first: it opens this worker's port and meets the others
    tf.keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments.data_folder)
    batch_size = arguments.batch_size * strategy.num_replicas_in_sync
    with strategy.scope():
        network = build_network(arguments, process_count=strategy.num_replicas_in_sync)
    network.fit(
        make_dataset(digits, batch_size),
        steps_per_epoch=max(1, len(digits.train_images) // batch_size),
        epochs=arguments.epochs,
        callbacks=[EpochLine()],
        verbose=0,
    )
    require_identical_weights(strategy, network)
    save(network, is_chief(strategy))
    leave_together(strategy)
    report(measure_accuracy(network, digits), arguments.accuracy_goal)


if __name__ == "__main__":
    main()
