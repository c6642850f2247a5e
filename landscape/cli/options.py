"""Options that every analysis of a checkpoint shares, in the order in which `--help` lists them."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

COUNT, SEED = click.IntRange(min=1), click.IntRange(min=0)


class _Number(click.FloatRange):
    """A range of numbers that nan is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a number, or fail as click does."""
        number = super().convert(value, param, ctx)
        return self.fail("nan is not a number.", param, ctx) if math.isnan(number) else number


POSITIVE, SIZE, SHARE = _Number(min=0, min_open=True), _Number(min=0), _Number(0, 1, min_open=True, max_open=True)

LOADING = (
    click.option("--ckpt", required=True, metavar="FILE", help="The checkpoint: .pt, .pth, .th, .tar, .safetensors."),
    click.option("--model", metavar="NAME", help="resnet32, resnet50, ... or package.module:callable."),
    click.option("--dataset", metavar="NAME", help="cifar10, digits-lt, image-list, ... or package.module:callable."),
    click.option("--data-root", metavar="DIR", help="Folder of the data."),
    click.option("--train-list", metavar="FILE", help="Of image-list: lines of `path label`."),
    click.option("--test-list", metavar="FILE", help="Of image-list: lines of `path label`."),
    click.option("--image-size", type=int, help="Side of the images of lists and folders.  [default: 224]"),
    click.option("--split", default="train", show_default=True, help="train or test."),
    click.option("--imbalance", type=float, metavar="R", help="Largest over smallest class: makes the long tail."),
    click.option("--imbalance-type", help="exp or step.  [default: exp]"),
    click.option("--data-seed", type=int, help="Of the long tail and of --samples-per-class.  [default: 0]"),
    click.option("--normalize", metavar="TEXT", help="imagenet, none, or m,m,m/s,s,s.  [default: the data set's own]"),
    click.option("--samples-per-class", type=int, metavar="N", help="Take at most N samples of each class."),
    click.option(
        "--loss",
        metavar="NAME",
        help="ce, focal, ldam, logit-adjust, vs, balanced, package.module:callable.  [default: ce]",
    ),
    click.option("--per-class", is_flag=True, help="Short for --partition class."),
    click.option(
        "--partition", metavar="NAME", help="all, class, many-medium-few, head-tail, or FILE.json.  [default: all]"
    ),
    click.option("--classes", metavar="LIST", help="Only these parts: 0,9 or head,tail."),
    click.option("--many", default=100, show_default=True, help="many: more training samples than this."),
    click.option("--few", default=20, show_default=True, help="few: fewer training samples than this."),
    click.option("--ends", default=1, show_default=True, help="Classes in each end of head-tail."),
    click.option("--params", metavar="GLOBS", help="Only these parameters: encoder, layer3.*,fc.weight."),
    click.option("--weight-decay", default=0.0, show_default=True, help="Adds its multiple of the identity."),
    click.option("--logits-index", type=int, help="Which of a model's outputs are the logits."),
    click.option("--cosine", is_flag=True, help="The classifier is cosine-normalised."),
    click.option("--ckpt-key", metavar="A.B", help="Where in the file the weights are."),
    click.option("--trust-pickle", is_flag=True, help="Let the checkpoint run code. Only for files that you made."),
    click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]"),
    click.option("--dtype", default="float32", show_default=True, help="float32 or float64."),
    click.option(
        "--batch-size", default=128, show_default=True, help="Speed and memory only; no number depends on it."
    ),
)

CHECKPOINTS = click.option(
    "--ckpt",
    required=True,
    metavar="FILES",
    help="A checkpoint, a glob of several in quotes, or the folder of a run, whose snapshots are meant.",
)
"""Takes the place of `LOADING[0]` in a command that looks at several checkpoints; see `begin.checkpoint_list`."""

OUTPUT = (
    click.option("-o", "--out", metavar="FILE.h5", help="Result file.  [default: beside the checkpoint]"),
    click.option("--overwrite", is_flag=True, help="Replace an existing result, begin an unfinished one anew."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
)


def of_the_data(command: click.Command, *, by_class: bool = True) -> None:
    """Fit the options of `LOADING` to a command whose numbers are those of the data alone.

    Args:
        command: loses --weight-decay, which is of the curvature only.
        by_class: its parts are the classes where no --partition is given.
    """
    command.params = [p for p in command.params if p.name != "weight_decay"]
    for option in command.params:
        if by_class and isinstance(option, click.Option) and option.name == "partition" and option.help is not None:
            option.help = option.help.replace("[default: all]", "[default: class]")


def options(*groups: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """Return a decorator that adds groups of options to a command, in their order.

    Args:
        groups: tuples of click options.

    Returns:
        The decorator.
    """

    def add(command: F) -> F:
        for option in reversed([o for group in groups for o in group]):
            command = option(command)
        return command

    return add
