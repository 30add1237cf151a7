"""Real data for tests, where this machine has it; elsewhere the tests that need it say so."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("RLGNS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (ROOT / "SHA256SUMS").exists(), reason=f"real data is not at {ROOT}; RLGNS_TEST_DATA names its directory"
)
MNIST, CIFAR10, TINY_IMAGENET = ROOT / "mnist", ROOT / "cifar10", ROOT / "tiny_imagenet_32"
SHAKESPEARE = ROOT / "text" / "tiny_shakespeare"
