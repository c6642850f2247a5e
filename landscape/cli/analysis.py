"""Options that analyses of a checkpoint share, under the headings of their help.

What can be chosen is read from the registries of networks, data sets, losses and partitions.
"""

from typing import Any

import cloup

from landscape.cli.options import (
    BY_COUNT,
    CALLED,
    DRY_RUN,
    JSON,
    OWN,
    READING,
    SIZE,
    THREADS,
    Choice,
    Decorator,
    listed,
    option,
)
from landscape.cli.processes import PROCESSES
from landscape.data import datasets
from landscape.networks import models, tasks
from landscape.objective import loading
from landscape.results import grouping

PART = "A part is a set of samples with numbers of its own: a class, a group of classes, or all samples."


def checkpoint(*, several: bool = False, series: bool = False, parameters: bool = True) -> Decorator[Any]:
    """Return the options of the checkpoint and its model.

    Args:
        several: the command takes the checkpoints of a run; see `runs.checkpoint_list`.
        series: the command takes one checkpoint, or several as a series along training; see `along.listed`.
        parameters: add the option that chooses the parameters.
    """
    one = "Analyse this checkpoint: a .pt, .pth, .th, .tar or .safetensors file, or a Hugging Face folder."
    more = (
        "Analyse these checkpoints: a file, a pattern in quotes such as 'run/snapshots/*.pt', or the folder of a run."
    )
    along = (
        "Analyse this checkpoint: a file or a Hugging Face folder. To analyse several as a series along training, give "
        "a pattern in quotes such as 'run/snapshots/*.pt', or the folder of a run, or repeat the option."
    )
    words = along if series else more if several else one
    chosen = option(
        "--params",
        metavar="GLOBS",
        help="Vary only these parameters: encoder, or patterns such as layer3.*,fc.weight.",
    )
    return cloup.option_group(
        "Checkpoint and model",
        option("--ckpt", required=True, multiple=series, metavar="FILES" if several or series else "FILE", help=words),
        *READING,
        option(
            "--model",
            metavar="NAME",
            help=f"Build this network: {listed((*models.names(), 'timm:NAME', 'hf:FOLDER'), CALLED)}.",
            show_default="the checkpoint's own",
        ),
        option("--cosine", is_flag=True, help="Give the network a cosine-normalised classifier."),
        option(
            "--logits-index",
            type=int,
            metavar="N",
            help="Use output N of the network as the logits, if it returns several outputs.",
        ),
        *([chosen] if parameters else []),
    )


DRAWN = option(
    "--samples",
    type=int,
    metavar="N",
    help="Use N samples of each part instead of all: draw them in proportion to their uncertainty, and weight them.",
)
"""The option that replaces all samples by a weighted draw."""


def samples(*, drawn: bool = True) -> Decorator[Any]:
    """Return the options of the data.

    Args:
        drawn: add `DRAWN`, so that `begin` draws the samples. A command that draws samples itself adds it elsewhere.
    """
    return cloup.option_group(
        "Data",
        option(
            "--dataset",
            metavar="NAME",
            help=f"Load this data set: {listed(datasets.names(), OWN)}.",
            show_default="the checkpoint's own",
        ),
        option("--data-root", metavar="DIR", help="Read the data from this folder. Nothing is downloaded."),
        option("--train-list", metavar="FILE", help="Read the training images from lines `path label` (image-list)."),
        option("--test-list", metavar="FILE", help="Read the test images from lines `path label` (image-list)."),
        option(
            "--image-size",
            type=int,
            metavar="PIXELS",
            help="Crop the images of image-list and image-folder to squares with this side.",
            show_default="224",
        ),
        option("--split", default="train", show_default=True, metavar="NAME", help="Use this split: train or test."),
        option(
            "--imbalance",
            type=float,
            metavar="R",
            help="Make the data long-tailed: the largest training class is R times as large as the smallest.",
        ),
        option(
            "--imbalance-type",
            metavar="NAME",
            help=f"Choose the shape of the long tail: {listed(datasets.IMBALANCE)}.",
            show_default="exp",
        ),
        option(
            "--imbalance-draw",
            metavar="NAME",
            help=f"Draw the samples of the long tail as this package does, or as the code of LDAM-DRW: "
            f"{listed(datasets.DRAWS)}.",
            show_default="own",
        ),
        option(
            "--data-seed",
            type=int,
            metavar="N",
            help="Seed the choice of samples for "
            + ("--imbalance, --samples-per-class and --samples" if drawn else "--imbalance and --samples-per-class")
            + "; the long tail of a run keeps its own seed.",
            show_default="0",
        ),
        option(
            "--target",
            metavar="KEY",
            help="Use this entry of each item as the target, if items are dicts.",
            show_default="label, labels, ...",
        ),
        option(
            "--normalize",
            metavar="TEXT",
            help="Normalise images by imagenet, none, or mean,.../std,... per channel.",
            show_default="the data set's own",
        ),
        option(
            "--samples-per-class",
            type=int,
            metavar="N",
            help="Use at most N samples of each class, drawn by --data-seed.",
        ),
        *([DRAWN] if drawn else []),
    )


def parts(*more: Decorator[Any], default: str = "all") -> Decorator[Any]:
    """Return the options that divide the data into parts.

    Args:
        more: options of the command's own.
        default: the partition where none is given.
    """
    return cloup.option_group(
        "Parts",
        option(
            "--partition",
            metavar="NAME",
            help=(
                f"Divide the data into parts: {', '.join(grouping.NAMES)}, quantiles:N of the targets, column:NAME of "
                "the data set, a package.module:function of (input, target), or a JSON file "
                '{"name": [class, ...]}.'
            ),
            show_default=default,
        ),
        option("--per-class", is_flag=True, help="Make each class a part; short for --partition class."),
        option("--classes", metavar="LIST", help="Keep only these parts, by name or position: head,tail or 0,9."),
        *more,
        *BY_COUNT,
        help=PART,
    )


def numbers(*more: Decorator[Any], weight_decay: bool = False, cache: str = "") -> Decorator[Any]:
    """Return the options that say what is computed of each sample, and how.

    Args:
        more: options of the command's own.
        weight_decay: the command can add a multiple of the identity.
        cache: what the command caches in memory, up to a limit; empty if it caches nothing.
    """
    limit = option(
        "--cache",
        type=SIZE,
        default=2.0,
        show_default=True,
        metavar="GIB",
        help=f"Keep up to this many GiB of {cache}.",
    )

    decay = option(
        "--weight-decay",
        default=0.0,
        show_default=True,
        metavar="X",
        help="Add X times the identity, the Hessian of X / 2 |theta|^2, to the matrix.",
    )
    return cloup.option_group(
        "Numbers",
        option(
            "--loss",
            metavar="NAME",
            help=f"Measure this loss: {listed(tasks.loss_names(), OWN)}.",
            show_default="the task's own",
        ),
        option(
            "--task",
            metavar="NAME",
            help=f"Interpret outputs and targets as in this task: {listed(tasks.names())}.",
            show_default="inferred from loss and targets",
        ),
        *([decay] if weight_decay else []),
        *more,
        *([limit] if cache else []),
        option(
            "--dtype",
            type=Choice(tuple(loading.DTYPES)),
            default="float32",
            show_default=True,
            help="Compute in this precision.",
        ),
        option(
            "--threads",
            type=THREADS,
            metavar="N",
            help="Compute with N threads.",
            show_default="OMP_NUM_THREADS, or the fastest number",
        ),
        PROCESSES,
        option(
            "--device", metavar="NAME", help="Compute on cpu, cuda or cuda:1.", show_default="a GPU where there is one"
        ),
        option(
            "--batch-size",
            default=128,
            show_default=True,
            metavar="N",
            help="Process N samples at a time. This changes speed and memory, but results only by rounding.",
        ),
    )


def output(*more: Decorator[Any]) -> Decorator[Any]:
    """Return the options of what is written and printed.

    Args:
        more: options of the command's own.
    """
    return cloup.option_group(
        "Output",
        option(
            "-o",
            "--out",
            metavar="FILE.h5",
            help="Write the result to this file.",
            show_default="beside the checkpoint",
        ),
        option("--overwrite", is_flag=True, help="Replace an existing result, and restart an unfinished one."),
        *more,
        DRY_RUN,
        JSON,
        option("-q", "--quiet", is_flag=True, help="Print errors only."),
    )
