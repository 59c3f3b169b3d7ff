"""Train on handwritten digits with the chief, workers and parameter servers of TF_CONFIG and Keras.

The parameter servers hold the weights, the workers compute gradients, each at its own pace, and the chief tells them
what to do. Workers and parameter servers never return: whoever started them ends them when the chief has ended.
"""

from __future__ import annotations

import sys

import tensorflow as tf
from digits import MODEL, Digits, EpochLine, build_network, load_digits, measure_accuracy, parse_arguments, report


def serve(resolver: tf.distribute.cluster_resolver.TFConfigClusterResolver) -> None:
    """Do what the chief asks, for ever."""
    server = tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    )
    print(f"{resolver.task_type} {resolver.task_id} serves", flush=True)
    server.join()


def make_dataset(digits: Digits, batch_size: int) -> tf.data.Dataset:
    """Return endless batches: every worker shuffles all images in its own order."""
    dataset = tf.data.Dataset.from_tensor_slices((digits.train_images, digits.train_labels))
    return dataset.shuffle(len(digits.train_images)).repeat().batch(batch_size)


def main() -> None:
    """Play the part that TF_CONFIG gives this process; the chief trains, saves and reports."""
    arguments = parse_arguments(__doc__)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type in ("worker", "ps"):
        serve(resolver)
    if resolver.task_type != "chief":
        sys.exit("error: no TF_CONFIG with a chief, workers and parameter servers")

    tf.keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments.data_folder)
    strategy = tf.distribute.experimental.ParameterServerStrategy(resolver)  # waits for all workers and servers
    with strategy.scope():
        network = build_network(arguments)
    network.fit(
        tf.keras.utils.experimental.DatasetCreator(lambda _: make_dataset(digits, arguments.batch_size)),
        steps_per_epoch=max(1, len(digits.train_images) // arguments.batch_size),
        epochs=arguments.epochs,
        callbacks=[EpochLine()],
        verbose=0,
    )

    # A copy outside the strategy: its weights are here, so saving it does not write files on the parameter servers.
    copy = build_network(arguments)
    copy.set_weights(network.get_weights())
    copy.save(MODEL)
    report(measure_accuracy(copy, digits), arguments.accuracy_goal)


if __name__ == "__main__":
    main()
