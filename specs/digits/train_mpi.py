"""Train on handwritten digits in several MPI processes that average their gradients in every step."""

from __future__ import annotations

import sys
import traceback

import numpy as np
import tensorflow as tf
from digits import (
    MODEL,
    build_network,
    hash_weights,
    load_digits,
    measure_accuracy,
    parse_arguments,
    print_epoch,
    report,
)
from mpi4py import MPI


def make_steps(network: tf.keras.Model) -> tuple[tf.types.experimental.GenericFunction, ...]:
    """Return two functions: one computes the loss and all gradients as one vector, the other applies such a vector."""
    weights = network.trainable_variables
    sizes = [weight.shape.num_elements() for weight in weights]

    @tf.function
    def compute(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = network.compute_loss(y=labels, y_pred=network(images, training=True))
        gradients = tape.gradient(loss, weights)
        return loss, tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)

    @tf.function
    def apply(vector: tf.Tensor) -> None:
        pieces = tf.split(vector, sizes)
        gradients = [tf.reshape(piece, weight.shape) for piece, weight in zip(pieces, weights, strict=True)]
        network.optimizer.apply_gradients(zip(gradients, weights, strict=True))

    return compute, apply


def average(communicator: MPI.Comm, vector: np.ndarray) -> np.ndarray:
    """Return the mean of the vectors of all ranks."""
    total = np.empty_like(vector)
    communicator.Allreduce(vector, total, op=MPI.SUM)
    return total / communicator.size


def require_identical_weights(communicator: MPI.Comm, network: tf.keras.Model) -> None:
    """Compare the hash of the weights on all ranks; end every rank with 1 where two differ."""
    hashes = [hash_.hex()[:12] for hash_ in communicator.allgather(hash_weights(network))]
    if len(set(hashes)) > 1:
        sys.exit(f"error: the weights differ between ranks: {', '.join(hashes)}")
    if communicator.rank == 0:
        print(f"weights {hashes[0]} identical on {communicator.size} ranks", flush=True)


def main() -> None:
    """Train on this rank's share of the images; compare the weights; rank 0 saves and reports."""
    communicator = MPI.COMM_WORLD
    rank, size = communicator.rank, communicator.size
    arguments = parse_arguments(__doc__)
    tf.keras.utils.set_random_seed(arguments.seed + rank)
    digits = load_digits(arguments.data_folder)
    network = build_network(arguments, process_count=size)
    network.set_weights(communicator.bcast(network.get_weights(), root=0))
    compute, apply = make_steps(network)

    # Rank r takes the images r, r + size, r + 2 size...; every rank must make the same number of steps.
    images, labels = digits.train_images[rank::size], digits.train_labels[rank::size]
    step_count = len(digits.train_images) // size // arguments.batch_size
    if step_count == 0:
        sys.exit(f"error: {len(digits.train_images)} images are too few for {size} batches of {arguments.batch_size}")

    generator = np.random.default_rng(arguments.seed + rank)
    for epoch in range(1, arguments.epochs + 1):
        batches = generator.permutation(len(images))[: step_count * arguments.batch_size].reshape(step_count, -1)
        losses = np.zeros(1)
        for batch in batches:
            loss, gradients = compute(images[batch], labels[batch])
            apply(average(communicator, gradients.numpy()))
            losses += loss.numpy() / step_count
        mean_loss = average(communicator, losses)[0]
        if rank == 0:
            print_epoch(epoch, arguments.epochs, mean_loss)

    require_identical_weights(communicator, network)
    if rank == 0:
        network.save(MODEL)
        report(measure_accuracy(network, digits), arguments.accuracy_goal)


if __name__ == "__main__":
    try:
        main()
    except Exception:  # noqa: BLE001 (any error: the other ranks would wait for this one for ever)
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
