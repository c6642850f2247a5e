"""Reads mutated files, one after the other, under limits of memory and time, and tells what came of each.

A process of its own, as a file that brings it down must not take the test with it:

    python reading.py FOLDER KIND FIRST COUNT     mutants FIRST to FIRST + COUNT - 1 of each seed file of KIND

Before each mutant its number is written to FOLDER/progress. At the end one line of JSON counts what was read, and what
was refused in one line, and lists faults: anything else. FOLDER holds the files as mutants are made of them.
"""

import contextlib
import gzip
import io
import json
import resource
import shutil
import signal
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np

import landscape.cli
from landscape.errors import InputError, LandscapeError

SECONDS = 20  # of the processor, for one file
ROOM = 4 * 2**30  # bytes of address space beyond what is taken after the imports

NUMBERS = [0, 1, 2**7, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
PIECES = [b"\0", b"\xff", b"nan", b"1e999", b"9" * 400, b"[", b"{", b"]", b'"', b"\n", b"\xef\xbb\xbf", b"\xed\xa0\x80"]
ATTRIBUTES = ["", "text", 0, -1, np.nan, np.inf, 2**62, [1, 2], b"\xff", True, "[1]", "{}", np.zeros(0)]
VALUES = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300, -1e300, 1e-320, 2.0**63]


def mutated(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Change a few bytes or pieces; most mutants stay close to what they were made of."""
    whole = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(whole) + 1))
        long = int(rng.integers(1, 1 + min(64, len(whole) or 1)))
        match rng.integers(9):
            case 0 | 1:
                if at < len(whole):
                    whole[at] ^= 1 << int(rng.integers(8))
            case 2:
                whole[at : at + long] = rng.bytes(long)
            case 3:
                del whole[at : at + long]
            case 4:
                whole[at:at] = whole[at : at + long]
            case 5:
                width = int(rng.choice([1, 2, 4, 8]))
                number = int(rng.choice(np.array(NUMBERS, dtype=object))) % 2 ** (8 * width)
                whole[at : at + width] = number.to_bytes(width, rng.choice(["little", "big"]))
            case 6:
                whole[at:at] = PIECES[rng.integers(len(PIECES))] * int(rng.choice([1, 1, 3, 500]))
            case 7:
                del whole[at:]
            case 8:
                other = others[rng.integers(len(others))]
                start = int(rng.integers(len(other) + 1))
                whole[at : at + long] = other[start : start + long]
    return bytes(whole)


def in_zip(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Mutate a member of a zip archive, whose checksum is then right; now and then the archive itself."""
    if rng.integers(4) == 0:
        return mutated(content, rng, others)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith("data.pkl")]
        chosen = pickled[0] if pickled and rng.integers(4) else names[rng.integers(len(names))]
        for name in names:
            held = old.read(name)
            new.writestr(name, mutated(held, rng, [held]) if name == chosen else held)
    return out.getvalue()


def in_tar(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Mutate what is inside of a compressed archive; now and then the archive itself."""
    if rng.integers(3) == 0:
        return mutated(content, rng, others)
    plain = gzip.decompress(content)
    return gzip.compress(mutated(plain, rng, [plain]), 1)


def in_hdf5(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Put other values, types and shapes in the place of datasets and attributes; now and then change bytes."""
    if rng.integers(4) == 0:
        return mutated(content, rng, others)
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as root:
        for _ in range(rng.integers(1, 4)):
            names: list[str] = []
            root.visit(names.append)
            places = [name for name in names if isinstance(root[name], h5py.Dataset)]
            _changed(root, places[rng.integers(len(places))], rng)
    return buffer.getvalue()


def _changed(root, name: str, rng: np.random.Generator) -> None:
    old = root[name]
    shape = list(old.shape or ())
    match rng.integers(8):
        case 0 | 1 | 2:
            if old.dtype.kind in "iufb" and old.size:
                values = old[()] if old.shape else np.array(old[()])
                values = np.array(values)
                with np.errstate(all="ignore"):
                    value = np.array(VALUES)[rng.integers(len(VALUES))].astype(values.dtype)
                    values.flat[rng.integers(values.size)] = value
                    if rng.integers(3) == 0:
                        values[...] = value
                old[...] = values
        case 3:
            axis = rng.integers(len(shape) + 1)
            shape = [*shape[:axis], int(rng.choice([0, 1, 2, 7])), *shape[axis + int(rng.integers(2)) :]]
            del root[name]
            root.create_dataset(name, data=rng.normal(size=shape))
        case 4:
            del root[name]
            kind = rng.choice(["f4", ">f8", "i1", "u8", "S3", "c16", "?", "f2"])
            root.create_dataset(name, shape=shape, dtype=kind)
        case 5:
            del root[name]
            if rng.integers(2):
                root.create_dataset(name, data=h5py.Empty("f8"))
        case 6:
            place = (root[name], root)[rng.integers(2)]
            keys = list(place.attrs)
            if keys:
                key = keys[rng.integers(len(keys))]
                place.attrs[key] = ATTRIBUTES[rng.integers(len(ATTRIBUTES))]
        case 7:
            if isinstance(root.attrs.get("provenance"), str):
                text = root.attrs["provenance"].encode()
                root.attrs["provenance"] = mutated(text, rng, [text]).decode("utf-8", "replace").replace("\0", "")


# What is read ----------------------------------------------------------------------------------------------------


def command(*words: object) -> None:
    """Run `landscape` in this process, as the shell would."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = landscape.cli.main([str(word) for word in words])
    lines = [line for line in said.getvalue().splitlines() if "error:" in line] or [said.getvalue()]
    if code == 2 and len(lines) == 1 and "out of memory" not in lines[0]:
        raise InputError(lines[0])
    if code:
        raise AssertionError(f"exit code {code}: {lines}")


def checkpoint(path: Path) -> None:
    from landscape.networks import checkpoints, models, weights

    command("info", path)
    command("info", path, "--json")
    found = checkpoints.read(path)
    weights.load_weights(models.build("small-resnet", 10), found.state, key=found.key)


def checkpoint_of_run(path: Path) -> None:
    """Find the place of a checkpoint in the run that it is of, and the optimizer there."""
    from landscape.objective import runs

    found = runs.stages([path, path.parent / "step-1.pt"])
    for stage in found:
        if stage.optimizer is not None:
            float(stage.optimizer.edge[0])


def result(path: Path) -> None:
    """Show a result, and write it as a table, as JSON and as other programs' files."""
    command("info", path)
    command("info", path, "--json")
    refused = []
    for form, suffix in (("csv", "csv"), ("json", "json"), ("npz", "npz"), ("vtk", "vts"), ("goldstein", "g.h5")):
        try:
            command("export", path, "--to", form, "-o", path.with_suffix(f".{suffix}"), "--overwrite")
        except InputError as error:
            refused.append(error)
    if len(refused) == 5:
        raise refused[0]


def drawn(path: Path) -> None:
    """Draw one of a result's figures; one result in eight is shown as a report in its place."""
    from landscape import plots
    from landscape.report import open_sources, page
    from landscape.results import store
    from landscape.results.columns import drawn_as

    found = store.load(path)
    chosen = zlib.crc32(path.read_bytes())
    figures = list(plots.KIND_FIGURES.get(drawn_as(found), {}).values())
    if chosen % 8 == 0 or not figures:
        page(open_sources({path: found}), "title")
    else:
        plots.write(figures[chosen // 8 % len(figures)](found), path.with_suffix(".png"))


def compared(path: Path) -> None:
    """Compare a result with the one that it was made of, in each of the ways that `compare` knows."""
    kind = path.parent.name.removeprefix("work-").rpartition("-")[0]
    whole = path.parent.parent / kind / path.name
    refused = []
    for options in ((), ("--groups", "head-tail"), ("--weights", "balanced"), ("--match-samples",), ("--json",)):
        try:
            command("compare", path, whole, *options)
        except InputError as error:
            refused.append(error)
    if len(refused) == 5:
        raise refused[0]


def foreign_surface(path: Path) -> None:
    from landscape.results.foreign import surface_files

    surface_files.read(path)


def foreign_directions(path: Path) -> None:
    from landscape.results.foreign import surface_files

    surface_files.read_directions(path)


def numpy_array(path: Path) -> None:
    from landscape.results.foreign import interop

    interop.read_saddle_longtail(path, path)


@cache
def toy() -> object:
    """Return the objective of the runs that are gone on with."""
    import torch

    import landscape as ls

    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 3)
    images = torch.randn(21, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=draw) / 5
    return ls.make_objective(model, (images, labels), parts="class", device="cpu")


def analyse(name: str, out: Path, **options: object) -> object:
    """Compute one of the results whose unfinished runs are gone on with."""
    import landscape as ls

    options["out"] = out
    match name:
        case "draws":
            return ls.spectrum(toy(), samples=4, **options)
        case "spectrum":
            return ls.spectrum(toy(), operator="ggn", vectors=1, overlap=True, **options)
        case "plane":
            return ls.surface2d(toy(), n=3, **options)
        case "line":
            return ls.surface1d(toy(), n=3, **options)
    return getattr(ls, name)(toy(), **options)


def unit(path: Path) -> None:
    """Go on with a run of which one unit is damaged: it is computed again, or refused, or taken as it is read."""
    name = path.name.partition("-")[0]
    run = path.parent / "runs" / name
    (run / "out.h5.partial" / path.name.partition("-")[2]).write_bytes(path.read_bytes())
    analyse(name, run / "out.h5")


def groups(path: Path) -> None:
    from landscape.data.partition import Partition
    from landscape.results import disk

    found = disk.read_json(path, InputError)
    if not isinstance(found, dict) or not all(isinstance(g, list) for g in found.values()):
        raise InputError("no groups")
    Partition.by_groups(np.array([0, 1, 2, 2]), found, 3)


def recipe(path: Path) -> None:
    from trainers import methods

    methods.compose({"dataset": "digits-lt"}, config=path)


def journal(path: Path) -> None:
    # private: the file is read alone, without the run beside it
    from landscape.results.journal import _read_run

    (path.parent / "j").mkdir(exist_ok=True)
    (path.parent / "j" / "run.json").write_bytes(path.read_bytes())
    _read_run(path.parent / "j")


def image_list(path: Path) -> None:
    from landscape.data import images

    split = images.read_lists(path.parent, "train", 16, {"train_list": path})
    split.files.description()
    split.files.__getitems__(range(min(4, len(split.files))))


def image(path: Path) -> None:
    from landscape.data import images

    images.resized(path, 16)


def cifar(path: Path) -> None:
    from landscape.data import cifar as archive

    place = path.parent / "cifar-10-batches-py"
    if path.suffix == ".gz":
        alone = path.parent / "alone"  # an unpacked folder beside it would be read instead
        alone.mkdir()
        path.rename(alone / "cifar-10-python.tar.gz")
        archive.read("cifar10", alone, "train")
    else:
        (place / path.name).write_bytes(path.read_bytes())
        archive.read("cifar10", place, "train")


Reader = Callable[[Path], None]
Mutation = Callable[[bytes, np.random.Generator, list[bytes]], bytes]
KINDS: dict[str, tuple[Reader, Mutation]] = {
    "checkpoint": (checkpoint, in_zip),
    "old-checkpoint": (checkpoint, mutated),
    "safetensors": (checkpoint, mutated),
    "checkpoint-of-run": (checkpoint_of_run, in_zip),
    "result": (result, in_hdf5),
    "drawn-result": (drawn, in_hdf5),
    "compared-result": (compared, in_hdf5),
    "piece": (result, in_hdf5),
    "series": (result, in_hdf5),
    "drawn-series": (drawn, in_hdf5),
    "compared-series": (compared, in_hdf5),
    "unit": (unit, in_hdf5),
    "foreign-surface": (foreign_surface, in_hdf5),
    "foreign-directions": (foreign_directions, in_hdf5),
    "foreign-archive": (foreign_surface, in_zip),
    "numpy-array": (numpy_array, mutated),
    "groups": (groups, mutated),
    "recipe": (recipe, mutated),
    "journal": (journal, mutated),
    "image-list": (image_list, mutated),
    "image": (image, mutated),
    "cifar-batch": (cifar, mutated),
    "cifar-archive": (cifar, in_tar),
}
"""What is read by which reader, and how mutants are made; the seed files of a kind lie in the folder of its name."""


class TooSlowError(BaseException):
    """A file took longer than SECONDS."""


def _in_one_line(error: LandscapeError) -> None:
    if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
        raise AssertionError(f"a refusal is no line: {error!s:.200}")


def main(folder: Path, kind: str, first: int, count: int) -> dict:
    read, mutate = KINDS[kind]
    seeds = sorted((folder / kind).iterdir())
    (folder / "progress").write_text(f"{kind}, before its first mutant")
    contents = [seed.read_bytes() for seed in seeds]
    beside = {p: p.read_bytes() for p in (folder / "beside").rglob("*") if p.is_file()}
    work = folder / f"work-{kind}-{first}"
    for seed in seeds:  # imports, and what is loaded once, come before the limit
        _place(work, beside, folder)
        (work / seed.name).write_bytes(seed.read_bytes())
        with contextlib.suppress(
            *[InputError] if kind.startswith(("drawn", "compared")) else []
        ):  # of a figure that it has not
            read(work / seed.name)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _stop)
    outcome = {"read": 0, "refused": 0, "faults": []}
    for number in range(first, first + count):
        (folder / "progress").write_text(f"{kind} {number}")
        rng = np.random.default_rng([number, len(kind), *kind.encode()])
        i = int(rng.integers(len(seeds)))
        _place(work, beside, folder)
        path = work / seeds[i].name
        path.write_bytes(mutate(contents[i], rng, contents))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read(path)
            outcome["read"] += 1
        except LandscapeError as error:
            outcome["refused"] += 1
            try:
                _in_one_line(error)
            except AssertionError as fault:
                outcome["faults"].append([number, seeds[i].name, str(fault)])
        except (Exception, TooSlowError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome["faults"].append([number, seeds[i].name, f"{type(error).__name__}: {error!s:.150} ({where.name})"])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome


def _place(work: Path, beside: dict[Path, bytes], folder: Path) -> None:
    """Make the folder anew in which a mutant lies, with what a reader needs beside it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for path, content in beside.items():
        target = work / path.relative_to(folder / "beside")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _stop(*_: object) -> None:
    raise TooSlowError(f"over {SECONDS} s")


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # what readers show is not looked at
        found = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(f"{json.dumps(found)}\n")
