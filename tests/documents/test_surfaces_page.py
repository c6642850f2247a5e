"""docs/surfaces.md: its examples in Python run, one after the other."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape.networks import checkpoints

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "surfaces.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
SMALLER = {", 21)": ", 5)", "ls.trajectory(end, ": "ls.trajectory(end, n=5, paths="}
MINE = """
import torch
def network(): return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
def data(split):
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(inputs, torch.arange(12) % 3)
"""


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What a reader has: two models, data, and two runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("of_surfaces.py").write_text(MINE)
    networks = []
    for seed in range(8):
        torch.manual_seed(seed)
        networks.append(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    about = {"model": "of_surfaces:network", "n_classes": 3, "dataset": {"name": "of_surfaces:data"}}
    for r, run in enumerate(("ce", "sam")):
        Path("runs", run, "snapshots").mkdir(parents=True)
        for epoch, network in enumerate(networks[3 * r : 3 * r + 3]):
            for file in (f"snapshots/epoch-{epoch}.pt", "last.pt"):
                checkpoints.write(Path("runs", run, file), network.state_dict(), {**about, "epoch": epoch})
    data = TensorDataset(torch.randn(12, 4), torch.arange(12) % 3)
    yield {"model": networks[6], "other": networks[7], "loader": DataLoader(data, batch_size=5)}
    plt.close("all")


def test_the_examples_run(names):
    for text in BLOCKS:
        for shown, run in SMALLER.items():
            text = text.replace(shown, run)
        exec(compile(text, "docs/surfaces.md", "exec"), names)
    assert names["barriers"].shape == (3,)
    assert names["surface"].marks == ("ce", "sam")
    assert names["paths"].mark_run.tolist() == [0] * 3 + [1] * 3
    assert names["paths"].mark_epoch.tolist() == [0, 1, 2] * 2
