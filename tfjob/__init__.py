"""tfjob: submit TensorFlow training jobs to your own machines."""

from __future__ import annotations

__version__ = "0.1.0"
