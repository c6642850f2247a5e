"""What several rooms' tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Tests run side by side, and their networks are tiny: threads that wait for each other cost five times what they gain.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def cifar_root(tmp_path_factory) -> Path:
    """A data root with the real CIFAR-10: the long-tailed training images (ratio 100), all test images."""
    source = os.environ.get("LANDSCAPE_TEST_DATA")
    if source is None:
        pytest.skip("LANDSCAPE_TEST_DATA is unset: no real CIFAR-10 to read")
    data = Path(source) / "data"
    root = tmp_path_factory.mktemp("cifar")
    command = [sys.executable, str(data / "unpack.py"), str(data / "cifar10-lt-r100.zip"), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    return root
