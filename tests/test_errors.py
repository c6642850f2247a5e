"""Messages name arguments to who calls a function, and options to who types a command."""

import ast
from pathlib import Path

import click
import pytest
from refusals import refused
from results_of_all_kinds import sharpness

import landscape as ls
from landscape.cli import main, naming, root
from landscape.curvature.lanczos import probe
from landscape.errors import InputError, arg, check_choice, is_of_memory, named_by, said

LIBRARY_ONLY = {
    "grouping", "k", "results",  # of `Partition.by_frequency`, `Operator.top` and `concat`
    "analysis",  # of `series`
    "class_counts",  # of `make_objective` and `load_objective`; commands read the training split
    "epoch", "objective", "step", "what",  # of `Monitor` and `numbers`
    "folder",  # of `Memory`
    "strength",  # of `GKP`; recipes and commands call it preservation
    "directions",  # in the cost of eigenvectors; commands have it under a name of their own
}  # fmt: skip
"""Arguments which no command gives by these names."""

ROOT = Path(__file__).resolve().parents[1]


def names_in_messages():
    """The literal names that the code passes to `arg` and `check_choice`."""
    found = set()
    for path in [*ROOT.glob("landscape/**/*.py"), *ROOT.glob("trainers/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"arg", "check_choice"}:
                name = node.args[0]
                found |= {name.value} if isinstance(name, ast.Constant) else set()
    return found


def options():
    commands = [root.get_command(None, name) for name in root.list_commands(None)]
    return {p.name for command in commands for p in command.params if isinstance(p, click.Option)}


def test_every_argument_that_a_message_names_is_an_option_of_some_command():
    names = names_in_messages()
    assert names > {"steps", "dtype", "batch_norm"}
    assert {name for name in names if naming.OTHERWISE.get(name, name) not in options()} == LIBRARY_ONLY
    assert set(naming.OTHERWISE) <= names


def test_a_function_speaks_of_arguments_and_a_command_of_its_options(tmp_path, capsys):
    with refused(InputError, "seed", -1):
        probe(3, seed=-1, number=0)
    with refused(ls.StoreError, overwrite=True):
        ls.save(Path(__file__), sharpness())
    assert main(["surface1d", "--ckpt", "a.pt", "--model", "nothing", "-o", str(tmp_path / "a.h5")]) == 2
    assert main(["train", "ce", "--dataset", "digits-lt", "--normalize", "some", "-o", str(tmp_path / "run")]) == 2
    assert "--normalize must be imagenet, none or m,m,m/s,s,s" in capsys.readouterr().err
    with refused(InputError, "seed"):  # the command is over
        probe(3, seed=-1, number=0)


@click.command()
@click.option("--bn")
@click.option("--steps")
@click.option("-o", "--out")
@click.option("--log/--linear")
@click.option("--curvature", is_flag=True)
@click.option("--what", "hidden_name")
@click.option("--epochs")
def command(**options):
    raise InputError(
        " ".join([
            arg("batch_norm", "keep"), arg("steps", 3), arg("out", Path("a b")), arg("log", False), arg("log", True),
            arg("hidden_name"), arg("curvature", False),
            arg("epochs", 2), arg("lr"), arg("tol", 1.0), arg("milestones", (2, 4)), arg("trust_pickle", True),
            said("a", "b"),
        ])
    )  # fmt: skip


def test_options_are_written_as_the_command_declares_them():
    with named_by(naming.as_option), pytest.raises(InputError) as caught:
        command.main([], standalone_mode=False)
    assert str(caught.value) == (
        "--bn keep --steps 3 --out 'a b' --linear --log --what no --curvature "
        "--epochs 2 --finetune-lr --tol 1 --milestones 2,4 --trust-pickle b"
    )


def test_arguments_are_written_as_in_python():
    class Shown:
        ndim = 0

        def item(self):
            return 0.5

    written = [arg("steps"), arg("dtype", "float64"), arg("out", Path("a b")), arg("tol", Shown()), arg("loss", arg)]
    assert written == ["steps", "dtype='float64'", "out='a b'", "tol=0.5", "loss=arg"]
    assert said("a", "b") == "a"


@pytest.mark.parametrize(("value", "hint"), [("hesian", "did you mean hessian? "), ("K-FAC", ""), (3, ""), ([1], "")])
def test_a_choice_that_does_not_exist_is_refused_with_the_nearest(value, hint):
    with pytest.raises(InputError) as caught:
        check_choice("operator", value, ("hessian", "ggn"))
    assert str(caught.value) == f"operator={value!r} is unknown: {hint}choose hessian, ggn"


def test_a_name_of_thousands_of_letters_is_cut_and_both_ends_of_the_message_stay():
    text = str(InputError(f"no option '{'x' * 10**5}': leave it out"))
    assert len(text) < 2000
    assert text.startswith("no option 'xxx")
    assert text.endswith("xxx': leave it out")
    assert str(InputError("a short one")) == "a short one"


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes",
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: 8 bytes.",
        "could not create a primitive",
        "could not create a memory",
        "std::bad_alloc",
        "unable to mmap 8 bytes from file <x.pt>: Cannot allocate memory (12)",
        "CUDA out of memory. Tried to allocate 20.00 GiB.",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 18.00 GB, other allocations: 3.00 MB)",
    ],
)
def test_memory_that_ran_out_is_known_by_the_messages_of_all_libraries(text):
    assert is_of_memory(RuntimeError(text))
    cause = InputError("other")
    cause.__cause__ = RuntimeError(text)
    assert is_of_memory(cause)


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        ValueError("the shop is out of memory cards"),
    ],
)
def test_other_errors_are_not_of_memory(error):
    assert not is_of_memory(error)
