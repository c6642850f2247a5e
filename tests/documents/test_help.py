"""What `-h` prints of each command, compared with tests/golden; names come from registries, and nowhere else.

`python tests/documents/test_help.py` writes the golden files anew, to be read before they are committed.
"""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from landscape.cli import root

DOCS = Path(__file__).resolve().parents[2] / "docs"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
COMMANDS = ["", *root.list_commands(None)]


def page(name):
    """The help of a command, or of the whole program, for a terminal of 100 columns."""
    words = [name, "-h"] if name else ["-h"]
    return CliRunner().invoke(root, words, prog_name="landscape", terminal_width=100).output


def golden(name):
    return GOLDEN / f"{name or 'landscape'}.txt"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_is_the_golden_one(name):
    assert page(name) == golden(name).read_text(encoding="utf-8"), (
        f"run python {Path(__file__).name} and read the change"
    )


def test_every_golden_file_is_of_a_command():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {name or "landscape" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_in_a_sentence(name):
    command = root.get_command(None, name) if name else root
    for param in command.params:
        if getattr(param, "hidden", False):
            continue
        help = param.help
        assert help, param.name
        assert help.endswith("."), help
        assert help[0].isupper() or help.split(":")[0] in command.params, help


@pytest.mark.parametrize("name", root.list_commands(None))
def test_help_ends_with_two_examples_or_three(name):
    examples = re.findall(rf"^  (landscape {name}\b.*)$", page(name).partition("Examples:")[2], flags=re.MULTILINE)
    assert len(examples) in {2, 3}


# Registries ---------------------------------------------------------------------------------------------------------

TOY_LOSS = """
from landscape.networks import losses
losses.LOSSES["toyloss"] = lambda: losses.cross_entropy
"""
TOY_DATA = """
from landscape.data import datasets
datasets.DATASETS["toydata"] = datasets.Source(read=None)
"""
TOY_NETWORK = """
from landscape.networks import models
models.NETWORKS["toynetwork"] = models.CifarResNet
"""
TOY_MATRIX = """
import dataclasses
from landscape.curvature import kinds, operators
kinds.KINDS["toymatrix"] = dataclasses.replace(kinds.HESSIAN, name="toymatrix")
"""
TOY_POLICY = """
from landscape.objective import batch_norm
batch_norm.POLICIES["toypolicy"] = batch_norm.Policy(does="a toy", replaces=batch_norm.kept)
"""
TOY_FIGURE = """
from landscape import plots
def toy(spectrum, parts=None, *, vmin=None):
    '''Draw a toy.'''
plots.KIND_FIGURES["spectrum"]["toyfigure"] = toy
"""


TOYS = {
    "toyloss": (TOY_LOSS, "hessian", "losses.build('toylos', [1])"),
    "toydata": (TOY_DATA, "sharpness", "datasets.load('toydat')"),
    "toynetwork": (TOY_NETWORK, "surface2d", "models.build('toynetwor', 2)"),
    "toymatrix": (TOY_MATRIX, "hessian", "kinds.find('toymatri')"),
    "toypolicy": (TOY_POLICY, "surface1d", "batch_norm.check('toypolic')"),
    "toyfigure": (TOY_FIGURE, "plot", None),
}
"""Names, each with the program that adds it, a command that takes it, and a call with a misspelt one."""
CUT = "-- cut --"


@pytest.fixture(scope="module")
def said():
    """What a process says in which all toys are added: the page of names, and the errors and the help of each toy.

    In a process of its own: the help is made when the command is loaded.
    """
    import fresh  # which a script that writes golden files does not find

    lines = ["from landscape.errors import InputError", *(program for program, *_ in TOYS.values())]
    lines += ["import runpy", "from landscape.cli import main"]
    lines += [f"print(*runpy.run_path({str(DOCS / 'generated.py')!r})['names']())"]
    for _, command, wrong in TOYS.values():
        lines += [f"print({CUT!r})"]
        lines += [f"try:\n    {wrong}\nexcept InputError as error:\n    print(error)"] * (wrong is not None)
        lines += [f"print({CUT!r}, flush=True)", f"assert main(['{command}', '-h']) == 0"]
    page, *others = fresh.run("\n".join(lines)).split(CUT)
    return page, dict(zip(TOYS, zip(others[::2], others[1::2], strict=True), strict=True))


@pytest.mark.parametrize("name", TOYS)
def test_a_name_is_typed_once_in_its_registry(said, name):
    page, of_toys = said
    error, help = of_toys[name]
    assert name in help
    assert f"`{name}`" in page
    assert TOYS[name][2] is None or f"did you mean {name}?" in error


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in COMMANDS:
        golden(name).write_text(page(name), encoding="utf-8")
        os.write(1, f"{golden(name)}\n".encode())
