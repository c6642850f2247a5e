"""Mutated files of every kind that is read: each is read, or refused in one line, within memory and time.

The campaign: LANDSCAPE_CAMPAIGN=20000 pytest -m campaign tests/campaigns/test_mutated_files.py
LANDSCAPE_FIRST=1000 goes on after the first thousand mutants of each kind.
"""

import argparse
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import foreign_files
import numpy as np
import pytest
import results_of_all_kinds
import safetensors.torch
import torch
from campaigns import reading
from fresh import Program
from interruptions import Interrupting
from PIL import Image

import landscape as ls
from landscape.networks import checkpoints, models
from landscape.results import Result, Sharpness, Spectrum, Surface, store
from trainers import recipes

CAMPAIGN = int(os.environ.get("LANDSCAPE_CAMPAIGN", "20000"))
FIRST = int(os.environ.get("LANDSCAPE_FIRST", "0"))
PIECE = 500  # mutants of one process
READING = f"import runpy; runpy.run_path({reading.__file__!r}, run_name='__main__')"


def _checkpoints(folder: Path) -> None:
    model = models.build("small-resnet", 10)
    state = {"state_dict": model.state_dict(), "epoch": 3, "best_acc1": np.float64(80.5), "args": argparse.Namespace()}
    for name, content in {"wrapped.pt": state, "module.pt": model, "tuple.pt": (model.state_dict(), 3)}.items():
        torch.save(content, folder / "checkpoint" / name)
        torch.save(content, folder / "old-checkpoint" / name, _use_new_zipfile_serialization=False)
    meta = {"model": "small-resnet", "n_classes": 10, "epoch": 3, "dataset": {"name": "digits-lt"}}
    checkpoints.write(folder / "checkpoint" / "last.pt", model.state_dict(), meta)
    safetensors.torch.save_file(model.state_dict(), folder / "safetensors" / "model.safetensors")


def _saved(folder: Path, found: dict[str, Result]) -> None:
    for name, result in found.items():
        for kind in (
            "result",
            "drawn-result",
            *["compared-result"] * isinstance(result, Spectrum | Sharpness | Surface),
        ):
            store.save(folder / kind / name, result)


def _results(folder: Path) -> None:
    _saved(folder, results_of_all_kinds.all_kinds())
    for name, result in results_of_all_kinds.pieces().items():
        store.save(folder / "piece" / name, result)
    for name, result in results_of_all_kinds.all_series().items():
        for kind in ("series", "drawn-series", "compared-series"):
            store.save(folder / kind / name, result)
    line, plane = np.linspace(-1, 1, 5), np.linspace(-1, 1, 4)
    foreign_files.goldstein(folder / "foreign-surface" / "line.h5", line)
    foreign_files.goldstein(folder / "foreign-surface" / "plane.h5", line, plane, splits=("train", "test"))
    tensors = foreign_files.tensors_of(1.0)
    foreign_files.directions(folder / "foreign-directions" / "directions.h5", tensors, foreign_files.tensors_of(2.0, 1))
    foreign_files.plane_npz(folder / "foreign-archive" / "plane.npz")
    np.savez_compressed(
        folder / "foreign-archive" / "landscaper.npz", loss=np.ones((4, 4)), coordinates=np.ones((2, 4))
    )
    np.save(folder / "numpy-array" / "array.npy", np.full((2, 4), 0.25))


def _computed(folder: Path) -> None:
    """Results as analyses leave them today, with all that they keep of samples, rows, images and errors."""
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 3)
    images = torch.randn(21, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    objective = ls.make_objective(model, (images, labels), parts="class", device="cpu")
    found = {
        "ggn.h5": ls.spectrum(objective, operator="ggn", steps=5, probes=2, vectors=2, overlap=True),
        "hessian.h5": ls.spectrum(objective, steps=5, probes=2),
        "errors-line.h5": ls.surface1d(objective, n=3),
        "errors-plane.h5": ls.surface2d(objective, n=3),
        "errors-sharpness.h5": ls.sharpness(objective),
        "errors-gradients.h5": ls.gradients(objective),
    }
    _saved(folder, found)


def _runs(folder: Path) -> None:
    """Runs that were interrupted, their units, and a run's checkpoints with the states of its optimizer."""
    for name, finished in {"spectrum": 5, "draws": 3, "line": 1, "plane": 2, "sharpness": 7}.items():
        run = folder / "beside" / "runs" / name
        run.mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt):
            reading.analyse(name, run / "out.h5", progress=Interrupting(finished))
        for path in (run / "out.h5.partial").glob("unit-*.h5"):
            (folder / "unit" / f"{name}-{path.name}").write_bytes(path.read_bytes())
    model = torch.nn.Linear(3, 2)
    for step, optimizer in enumerate((
        torch.optim.SGD(model.parameters(), 0.1, 0.9),
        torch.optim.Adam(model.parameters()),
    )):
        state = {"state_dict": model.state_dict(), "epoch": 3 + step, "optimizer": optimizer.state_dict()}
        torch.save(state, folder / "checkpoint-of-run" / f"step-{5 + step}.pt")
    torch.nn.init.zeros_(model.bias)
    torch.save({"state_dict": model.state_dict(), "step": 1, "epoch": 1}, folder / "beside" / "step-1.pt")


def _texts(folder: Path) -> None:
    (folder / "groups" / "groups.json").write_text('{"many": [0], "few": [1, 2]}')
    (folder / "recipe" / "recipe.toml").write_text('method = "sam"\n' + recipes.to_toml({"epochs": 3, "lr": 0.1}))
    run = {"replaces": False, "fingerprint": {"seed": 0, "ckpt": {"a": [1, 2.5, None]}}}
    (folder / "journal" / "run.json").write_text(json.dumps(run))
    (folder / "image-list" / "list.txt").write_text("a.png 0\nb.jpg 1\na.png 2\n")


def _images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.ppm", "d.tif", "e.webp", "f.bmp"):
        Image.fromarray(pixels).save(folder / "image" / name)
    for name in ("a.png", "b.jpg"):
        (folder / "beside" / name).write_bytes((folder / "image" / name).read_bytes())


def _cifar(folder: Path) -> None:
    place = folder / "beside" / "cifar-10-batches-py"
    place.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {b"data": rng.integers(0, 256, (3, 3072), dtype=np.uint8), b"labels": [0, 1, 1]}
        (place / name).write_bytes(pickle.dumps(batch, protocol=2))
    (place / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2))
    for name in ("data_batch_1", "batches.meta"):
        (folder / "cifar-batch" / name).write_bytes((place / name).read_bytes())
    with tarfile.open(folder / "cifar-archive" / "cifar.tar.gz", "w:gz") as archive:
        archive.add(place, "cifar-10-batches-py")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """One or more sound files of each kind."""
    folder = tmp_path_factory.mktemp("seeds")
    for kind in (*reading.KINDS, "beside"):
        (folder / kind).mkdir()
    for fill in (_checkpoints, _results, _runs, _texts, _images, _cifar):
        fill(folder)
    return folder


def read(folder: Path, kind: str, first: int, count: int) -> dict:
    program = Program(READING, folder, kind, first, count)
    code, output, errors = program.ended(600 + 5 * reading.SECONDS * count)  # a machine may have more to do than this
    if code:
        at = (folder / "progress").read_text()
        return {"read": 0, "refused": 0, "faults": [[at, "", f"ended with {code}: {errors[-500:]}"]]}
    return json.loads(output.splitlines()[-1])


def campaign(folder: Path, kind: str, n: int, begin: int = 0) -> None:
    counts = {"read": 0, "refused": 0}
    faults = []
    for first in range(begin, begin + n, PIECE):
        found = read(folder, kind, first, min(PIECE, begin + n - first))
        faults += found["faults"]
        for name in counts:
            counts[name] += found[name]
    print(f"{kind}: {n} mutants, {counts['read']} read, {counts['refused']} refused, {len(faults)} faults")
    assert not faults, "\n".join(map(str, faults[:40]))


DAILY = ("checkpoint", "result", "image", "groups")


@pytest.mark.parametrize("kind", DAILY)
def test_a_few_mutated_files_are_read_or_refused(seeds, kind):
    campaign(seeds, kind, 60)


@pytest.fixture(scope="module")
def computed(seeds) -> Path:
    _computed(seeds)
    return seeds


@pytest.mark.campaign
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("kind", reading.KINDS)
def test_mutated_files_are_read_or_refused(computed, kind):
    campaign(computed, kind, CAMPAIGN // len(reading.KINDS), FIRST)


def test_the_readers_find_what_they_look_for(seeds, tmp_path):
    """The witness is awake: a reader that raises something else, or takes a minute, is found out."""
    assert reading.KINDS.keys() == {p.name for p in seeds.iterdir() if p.is_dir()} - {"beside"} - {
        p.name for p in seeds.glob("work-*")
    }
    rng = np.random.default_rng(0)
    whole = (seeds / "groups" / "groups.json").read_bytes()
    assert len({reading.mutated(whole, rng, [whole]) for _ in range(100)}) > 90
    archive = (seeds / "checkpoint" / "wrapped.pt").read_bytes()
    assert io.BytesIO(reading.in_zip(archive, rng, [archive])).getvalue() != archive
