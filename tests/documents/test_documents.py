"""README and docs/: what they name exists, what they show runs, and what is only shown parses as a command.

Blocks are told apart by their language. Those without one hold commands: each line, or those that begin with "$ " with
what they print below. Pages in `RUN` are followed by the letter, in one folder, with the settings of `SMALLER`; all
other commands of the toolkit are parsed by the command line as a user's would be, but not called.
"""

import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch
from torch.nn import functional as F

import landscape as ls
from landscape.cli import COMMANDS, PLUGIN_HELP, main, root
from landscape.data import datasets
from landscape.networks import checkpoints, models
from trainers import methods

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]

RUN = {"docs/tutorial.md", "docs/howto.md"}
"""Pages whose "$ " commands and Python blocks are followed in their order, in one folder."""

SMALLER = {
    "--epochs 20": "--epochs 5",
    "epochs=20, seed=0": "epochs=5, seed=0",
    "--steps 60": "--steps 10 --probes 2 --samples-per-class 30 --backend reverse",  # a trace does not pay in so few
    "--per-class --steps 30": "--per-class --steps 5 --backend reverse",
    "--x=-1:1:21": "--x=-1:1:3",
    "--x=-1:1:11": "--x=-1:1:3",
    '("head", "tail"), limits': '("tail",), limits',
    "--also runs/sam": "--also runs/sam --grid 3",
    "steps=80, probes=4": "steps=4, probes=2",
    "steps=30": "steps=4",
    "report runs/*/last.*.h5": "report runs/ce/last.*.h5",  # more files of a kind take the same way
}
"""What a page says, and what is run in its place."""

SHOWN_ONLY = {
    "bash": "run by test_cluster.py",
    "math": "formulas",
    "text": "a picture",
    "diff": "applied and run by test_contributing.py",
    "sh": "h5dump is not part of the tests",
    "julia": "not part of the tests",
    "r": "not part of the tests",
    "matlab": "not part of the tests",
}
"""Languages of blocks that are not run, and why; a block of any other language must run or parse."""

INSTALLS = (
    "git clone ",  # a network
    "cd landscape",
    "python3 -m venv .venv",  # minutes, and a network; the suite itself runs in what these lines make
    ".venv/bin/pip install ",
    "source .venv/bin/activate",
    ".venv/bin/jupyter lab",
)
"""How commands begin that prepare the machine."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self):
        """The commands of the block, each on one line, with the lines of output that are shown below it."""
        found = []
        prompted = re.search(r"^\$ ", self.text, flags=re.MULTILINE)
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ ") or (line.strip() and not prompted):
                found.append((line.removeprefix("$ "), []))
            elif line.strip():
                found[-1][1].append(line)
        return found


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def smaller(text):
    for said, taken in SMALLER.items():
        text = text.replace(said, taken)
    return text


def spans(page):
    """Commands within sentences, which may leave out what the sentence says."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`(landscape [a-z0-9]+ [^`]*)`", text)
    return [s for s in found if "..." not in s.split() and "[OPTIONS]" not in s]


def every_command():
    shown = [
        (b.page, b.line, line, False) for p in PAGES for b in blocks(p) if not b.language for line, _ in b.commands
    ]
    named = [(page, 0, line, True) for page in PAGES for line in spans(page)]
    return [pytest.param(*c, id=f"{c[0]}:{c[1]}:{c[2][:60]}") for c in shown + named]


def parsed(words, *, partly=False):
    """Let the command line take the words, without calling the command."""
    name, *rest = words
    command = root.get_command(None, name)
    assert command is not None, f"there is no command {name}"
    try:
        with click.Context(root, info_name="landscape", **root.context_settings) as above:
            return command.make_context(name, rest, parent=above).params
    except click.exceptions.Exit:  # of --help
        return {}
    except (click.MissingParameter, click.BadOptionUsage):
        if not partly:
            raise
        return {}


# What is named exists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, _, heading in (t.partition("#") for t in re.findall(r"\]\(([^)\s]+)\)", text)):
        if target.startswith(("http", "reference/")):  # what the site is built with, `mkdocs build --strict` checks
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if heading:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}
            assert heading in anchors, f"{target}#{heading}"


def test_options_that_sentences_name_exist():
    commands = [root.get_command(None, name) for name in root.list_commands(None)]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known |= {"--no-deps", "--help", "--nproc-per-node"}
    slurm = "array cpus-per-task exact gpus-per-node gpus-per-task job-name kill-on-bad-exit nodes ntasks "
    slurm += "ntasks-per-node requeue time"
    known |= {f"--{name}" for name in slurm.split()}
    known |= {o for file in (ROOT / "benchmarks").glob("*.py") for o in re.findall(r'"(--[a-z-]+)"', file.read_text())}
    theirs = "dir_type model_file2 model_file3 mpi xignore xnorm"  # of tomgoldstein/loss-landscape
    known |= {f"--{name}" for name in theirs.split()}
    for page in PAGES:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", (ROOT / page).read_text(encoding="utf-8")))
        assert used <= known, (page, used - known)


def test_every_command_has_a_place_in_the_readme_or_the_pages_it_links():
    text = "".join((ROOT / p).read_text(encoding="utf-8") for p in PAGES)
    assert {n for n in (*COMMANDS, *PLUGIN_HELP) if f"landscape {n}" not in text and f"`{n}" not in text} == set()


@pytest.mark.parametrize("page", [p for p in PAGES if p != "README.md"])
def test_every_page_has_a_place_in_the_site(page):
    assert f": {page.removeprefix('docs/')}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


# Commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_languages_that_are_run_or_excused(page):
    assert {b.language for b in blocks(page)} <= {"", "python", *SHOWN_ONLY}


@pytest.mark.parametrize(("page", "line", "text", "partly"), every_command())
def test_commands_parse(page, line, text, partly):
    if text.startswith(INSTALLS):
        for file in re.findall(r"-[cr] (\S+)", text):
            assert (ROOT / file).exists()
        return
    words = shlex.split(text.replace("FILE.h5...", "FILE.h5"), comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        assert set(words[1:2]) <= targets
        return
    assert words[0] == "landscape", f"neither run nor excused: {text}"
    params = parsed(words[1:], partly=partly)
    if words[1] == "train" and params.get("method") not in (None, "METHOD"):
        recipe = {n: v for n, v in params.items() if v is not None and n in methods.Recipe.__dataclass_fields__}
        methods.compose(recipe, method=params["method"], benchmark=params["preset"])


# Pages that are followed --------------------------------------------------------------------------------------------


def shape(line):
    """A line of output without its numbers, for two runs of different length print different ones."""
    return " ".join(re.sub(r"[-+]?\d[\d,.]*(?:e[-+]\d+)?", "#", re.sub(r"─+", "─", line)).split())


def run_python(text, about, here, names):
    """Run a block after those before it on its page; one that begins with its file's name is kept under it."""
    if name := re.match(r"# (\w+\.py)\n", text):
        (here / name[1]).write_text(text, encoding="utf-8")
    exec(compile(smaller(text), about, "exec"), names)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a reader."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(tmp_path))]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", sorted(RUN))
def test_a_page_works_by_the_letter_and_prints_what_it_says(page, here, capsys, no_figures):
    data = ROOT / "figures" / "data"
    if page == "docs/howto.md":
        shutil.copy(data / "digits.ce.classes.h5", here / "ce.h5")
    names = {"__name__": "document"}
    for block in blocks(page):
        if block.language == "python":
            run_python(block.text, f"{page}:{block.line}", here, names)
            capsys.readouterr()
        if block.language or "\n$ landscape" not in f"\n{block.text}":
            continue
        for command, shown in block.commands:
            words = shlex.split(smaller(command), comments=True)
            assert words[0] == "landscape", command
            words = [name for w in words for name in (sorted(map(str, here.glob(w))) if "*" in w else [w])]
            code = main(words[1:])
            out, err = capsys.readouterr()
            assert code == 0, f"{command}\n{err}"
            printed = [shape(line) for line in f"{out}\n{err}".splitlines()]
            for line in shown:
                assert line.strip() == "..." or shape(line) in printed, (
                    f"{command}\nprints no line as\n{line}\n{out}{err}"
                )


# Blocks of other pages ----------------------------------------------------------------------------------------------


def python_of(page):
    return [b for b in blocks(page) if b.language == "python"]


OWN = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class MyNetwork(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, n_classes))


class MyDataset(TensorDataset):
    classes = ("airplane", "truck", "c", "d", "e", "f", "g")

    def __init__(self, train):
        generator = torch.Generator().manual_seed(int(train))
        super().__init__(torch.randn(15, 4, generator=generator), torch.arange(15) % 7)


"""
"""What the README's functions call: a network and data of seven classes, one of which has a name that it uses."""


@pytest.fixture
def mine(here):
    """The README's file of a user's own functions, and a checkpoint of the toolkit's own that names them."""
    (own,) = [b for b in python_of("README.md") if "def network" in b.text]
    (here / "mine.py").write_text(OWN + own.text, encoding="utf-8")
    model = runpy.run_path(str(here / "mine.py"))["network"]()
    torch.save(model.state_dict(), here / "X.pt")
    (here / "runs" / "ce").mkdir(parents=True)
    meta = {"model": "mine:network", "n_classes": 7, "dataset": {"name": "mine:data"}, "method": "ce"}
    checkpoints.write(here / "runs" / "ce" / "last.pt", model.state_dict(), meta)
    return here


def test_the_readmes_functions_serve_its_command(mine, capsys):
    (line,) = {c for b in blocks("README.md") if not b.language for c, _ in b.commands if "mine:" in c}
    assert main([*shlex.split(line)[1:], "--steps", "3"]) == 0
    assert "truck" in capsys.readouterr().out
    assert ls.load(mine / "X.hessian.h5").provenance["loss"].startswith("mine:loss")


def test_the_readmes_python_runs(mine):
    (block,) = [b for b in python_of("README.md") if "load_objective" in b.text]
    names = {}
    exec(compile(smaller(block.text), "README.md", "exec"), names)
    assert names["spectrum"].parts[1] == "truck"
    assert names["spectrum"].alpha.shape == (7, 2, 4)


def test_pyhessians_plotting_is_served():
    (block,) = python_of("docs/pyhessian.md")
    drawn = []
    names = {"ls": ls, "get_esd_plot": lambda *lists: drawn.append(lists)}
    names["spectrum"] = ls.load(ROOT / "figures" / "data" / "digits.ce.classes.h5")
    exec(compile(block.text, block.page, "exec"), names)
    ((eigenvalues, weights),) = drawn
    assert [len(e) for e in eigenvalues] == [len(w) for w in weights] == names["spectrum"].steps[0].tolist()
    assert all(sum(w) == pytest.approx(1) for w in weights)


def test_the_loops_of_the_training_page_step(here):
    """All blocks in their order, each of which moves the network; those of Lightning are run in test_own_loops.py."""
    first, *loops = [b for b in python_of("docs/training.md") if "LightningModule" not in b.text]
    exec(compile(smaller(first.text), first.page, "exec"), {})
    model = models.build("small-resnet", 10)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(9, 1, 8, 8, generator=generator), torch.arange(9)
    names = {"torch": torch, "F": F, "model": model, "batches": [batch, batch]}
    names["training_set"] = datasets.load("digits-lt").subsample(3)
    names["group_of_class"] = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    for block in loops:
        before = [p.detach().clone() for p in model.parameters()]
        exec(compile(block.text, block.page, "exec"), names)
        assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)), block.text
    assert names["memory"].gkp is not None


def test_the_report_pages_python_writes_a_page(here, no_figures):
    for name, method in {"ce.h5": "ce", "sam.h5": "sam"}.items():
        shutil.copy(ROOT / "figures" / "data" / f"digits.{method}.ends.h5", here / name)
    (block,) = python_of("docs/report.md")
    exec(compile(block.text, block.page, "exec"), {})
    assert "<title>CE and SAM</title>" in (here / "report.html").read_text(encoding="utf-8")


def test_no_python_block_is_forgotten():
    covered = {
        "README.md",
        "docs/pyhessian.md",
        "docs/training.md",
        "docs/report.md",
        "docs/contributing.md",
        "docs/tasks.md",
        "docs/along.md",
        "docs/cluster.md",
        "docs/surfaces.md",
        *RUN,
    }
    assert {p for p in PAGES if python_of(p)} == covered
