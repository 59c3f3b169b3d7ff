"""Train on handwritten digits with Keras in several processes; Horovod averages their gradients in every step."""

from __future__ import annotations

import sys

import horovod.tensorflow.keras as hvd
import tensorflow as tf
from digits import (
    MODEL,
    OUTPUTS,
    EpochLine,
    build_network,
    hash_weights,
    load_digits,
    measure_accuracy,
    parse_arguments,
    report,
)
from horovod.tensorflow import allgather_object


def take_own_gpu() -> None:
    """Use the GPU whose number is this process's rank on its node; without GPUs, do nothing."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")


def require_identical_weights(network: tf.keras.Model) -> None:
    """Write the hash of this rank's weights beside the others'; end every rank with 1 where two differ."""
    own = hash_weights(network).hex()
    OUTPUTS.mkdir(exist_ok=True)
    (OUTPUTS / f"weights-rank-{hvd.rank()}.txt").write_text(f"{own}\n", encoding="ascii")
    hashes = [one[:12] for one in allgather_object(own)]
    if len(set(hashes)) > 1:
        sys.exit(f"error: the weights differ between ranks: {', '.join(hashes)}")
    if hvd.rank() == 0:
        print(f"weights {hashes[0]} identical on {hvd.size()} ranks", flush=True)


def main() -> None:
    """Train on this rank's share of the images; compare the weights; rank 0 saves and reports."""
    hvd.init()
    rank, size = hvd.rank(), hvd.size()
    take_own_gpu()
    arguments = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(arguments.seed + rank)
    digits = load_digits(arguments.data_folder)
    network = build_network(arguments, process_count=size)
    network.compile(
        optimizer=hvd.DistributedOptimizer(network.optimizer),
        loss=network.loss,
        metrics=["accuracy"],
    )

    # Rank r takes the images r, r + size, r + 2 size...; every rank must make the same number of steps.
    share = len(digits.train_images) // size
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(root_rank=0),
        hvd.callbacks.MetricAverageCallback(),
    ]
    network.fit(
        digits.train_images[rank::size][:share],
        digits.train_labels[rank::size][:share],
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        callbacks=[*callbacks, EpochLine()] if rank == 0 else callbacks,
        verbose=0,
    )

    require_identical_weights(network)
    if rank == 0:
        network.save(MODEL)
        report(measure_accuracy(network, digits), arguments.accuracy_goal)


if __name__ == "__main__":
    main()
