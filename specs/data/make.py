"""Make the four IDX files of this folder from the digits that scikit-learn ships.

    pip install numpy scikit-learn
    python make.py            # writes beside this file
    python make.py elsewhere  # writes into another folder

The same seed gives the same split, and no time stamp is written, so running it again changes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

SEED = 1998
TEST_COUNT_PER_CLASS = 36  # of about 180: 360 test images in all
UNSIGNED_BYTE = 0x08  # the IDX code of this element type


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and the test images, both in shuffled order, as many tests of every digit."""
    order = np.random.RandomState(SEED).permutation(len(labels))
    test = np.sort(np.concatenate([np.flatnonzero(labels[order] == d)[:TEST_COUNT_PER_CLASS] for d in range(10)]))
    return np.delete(order, test), order[test]


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of unsigned bytes as IDX: two zeros, type, rank, the big-endian shape, then the bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0))
    print(f"{path.name}: {array.shape}")


def main() -> None:
    """Split the set once and write images and labels of both parts."""
    parser = argparse.ArgumentParser(description="Write the handwritten digits as IDX files.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    folder: Path = parser.parse_args().folder

    digits = load_digits()
    train, test = split(digits.target)
    for prefix, part in (("train", train), ("t10k", test)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", digits.images[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", digits.target[part])


if __name__ == "__main__":
    main()
