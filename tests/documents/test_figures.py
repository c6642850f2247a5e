"""The gallery is what the committed result files give."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_gallery_rebuilds_to_the_same_pixels(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make.py", "--check"])
    runpy.run_path(str(ROOT / "figures" / "make.py"), run_name="__main__")


def test_result_files_of_the_gallery_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "figures" / "data").glob("*.h5")}
    assert sizes
    assert max(sizes.values()) < 500_000, sizes
