"""Train on handwritten digits in one process with Keras."""

from __future__ import annotations

import tensorflow as tf
from digits import MODEL, EpochLine, build_network, load_digits, measure_accuracy, parse_arguments, report


def main() -> None:
    """Train, save the model, report the test accuracy."""
    arguments = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(arguments.seed)
    digits = load_digits(arguments.data_folder)
    network = build_network(arguments)
    network.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        callbacks=[EpochLine()],
        verbose=0,
    )
    network.save(MODEL)
    report(measure_accuracy(network, digits), arguments.accuracy_goal)


if __name__ == "__main__":
    main()
