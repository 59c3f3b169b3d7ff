"""What the training scripts of this folder share: arguments, data, network, progress lines, result."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

OUTPUTS = Path("outputs")  # tfjob keeps this folder after the run
MODEL = OUTPUTS / "model"
LARGEST_PIXEL = 16.0
UNSIGNED_BYTE = 0x08  # the IDX code of this element type


class Digits(NamedTuple):
    """Images as float32 rows of 64 values from 0 to 1, labels as integers from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def parse_arguments(description: str) -> argparse.Namespace:
    """Read the command line, which is the same for every script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-folder", type=Path, required=True, help="folder that holds the four IDX files")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step of one process")
    parser.add_argument("--first-layer-neurons", type=int, default=256)
    parser.add_argument("--second-layer-neurons", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accuracy-goal", type=float, default=0.95, help="exit with 1 below this test accuracy")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes into an array of the shape that its header gives."""
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes: it starts with 0x{content[:4].hex()}")
    rank = content[3]
    start = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", content[4:start])
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(f"{path}: the header gives the shape {shape}, but {len(content) - start} bytes follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def find(folder: Path, name: str) -> Path:
    """Return the file of this name in the folder or below it."""
    found = sorted(folder.rglob(name))
    if not found:
        raise FileNotFoundError(f"no {name} in {folder}")
    return found[0]


def load_digits(folder: Path) -> Digits:
    """Read the four files, scale the pixels to 0..1 and flatten each image."""

    def images(name: str) -> np.ndarray:
        pixels = read_idx(find(folder, name))
        return pixels.reshape(len(pixels), -1).astype(np.float32) / LARGEST_PIXEL

    def labels(name: str) -> np.ndarray:
        return read_idx(find(folder, name)).astype(np.int64)

    return Digits(
        images("train-images-idx3-ubyte.gz"),
        labels("train-labels-idx1-ubyte.gz"),
        images("t10k-images-idx3-ubyte.gz"),
        labels("t10k-labels-idx1-ubyte.gz"),
    )


def build_network(arguments: argparse.Namespace, process_count: int = 1) -> tf.keras.Model:
    """Build and compile the network: 64 pixels, two hidden layers, the probability of each of ten digits.

    Processes that average their gradients take fewer steps, so each step is longer by their number.
    """
    network = tf.keras.Sequential(
        [
            tf.keras.Input(shape=(64,), name="pixels"),
            tf.keras.layers.Dense(arguments.first_layer_neurons, activation="relu"),
            tf.keras.layers.Dense(arguments.second_layer_neurons, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    network.compile(
        optimizer=tf.keras.optimizers.SGD(arguments.learning_rate * process_count, momentum=0.9),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    return network


def print_epoch(epoch: int, epochs: int, loss: float) -> None:
    """Print the progress line of one epoch, at once."""
    print(f"epoch {epoch}/{epochs} loss {loss:.4f}", flush=True)


class EpochLine(tf.keras.callbacks.Callback):
    """Print one line per epoch in place of Keras's progress bar."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Print the loss of the epoch that has ended."""
        print_epoch(epoch + 1, self.params["epochs"], (logs or {})["loss"])


def measure_accuracy(network: tf.keras.Model, digits: Digits) -> float:
    """Return the share of test images that the network names correctly."""
    probabilities = network(digits.test_images, training=False).numpy()
    return float(np.mean(probabilities.argmax(axis=1) == digits.test_labels))


def hash_weights(network: tf.keras.Model) -> bytes:
    """Return a SHA-256 over every weight: two networks with the same hash have the same weights to the last bit."""
    return hashlib.sha256(b"".join(weight.tobytes() for weight in network.get_weights())).digest()


def report(accuracy: float, goal: float) -> None:
    """Print the result; end the program with 1 and a message where it misses the goal."""
    print(f"test accuracy {accuracy:.3f}", flush=True)
    if accuracy < goal:
        sys.exit(f"error: test accuracy {accuracy:.3f} is below the goal of {goal:.3f}")
