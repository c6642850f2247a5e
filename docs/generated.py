"""What `mkdocs build` adds to the pages of this folder: the reference, made of the code, and formulas as MathML.

Signatures and docstrings of the public names are left to mkdocstrings; here are the lists of them, the commands with
their options as the command line knows them, the names that registries hold, and the declared fields of every result.
Nothing is said twice: what the reference lacks, the code lacks. Files of figures/ are taken into the site, and links
that leave this folder are changed, so that the same page is read in the repository and in the site.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import cloup
import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import landscape
import trainers
from landscape import plots
from landscape.cli import root
from landscape.curvature import kinds
from landscape.data import datasets
from landscape.networks import losses, models
from landscape.objective.batch_norm import POLICIES, Policy
from landscape.results import KINDS
from landscape.results.grouping import GROUPINGS, Grouping
from trainers.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
_READ_INTO = re.compile(r"([\\*<\[]|(?<!\w)_|_(?!\w))")  # what Markdown and HTML take for their own


# Called by mkdocs ---------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let blocks of ```math become formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README as the first page, the pages of the reference, and the figures of the gallery."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(
        File.generated(config, "index.md", content=readme.replace("[CITATION.cff](CITATION.cff)", "CITATION.cff"))
    )
    for name, page in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(page())))
    for figure in sorted((ROOT / "figures").glob("*-light.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Change links that leave docs/: figures are part of the site, other files are named only."""
    markdown = markdown.replace("](../figures/", "](figures/")
    return re.sub(r"\[([^\]]*)\]\(\.\./(?!\w+\.md)[^)]*\)", r"\1", markdown)


def formula(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """Return a formula in LaTeX as MathML, which browsers draw without a script."""
    return f'<div class="{css_class}">{latex2mathml.converter.convert(source, display="block")}</div>'


# Pages --------------------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Yield the page of the commands: what `-h` says, as tables."""
    yield "# Commands\n"
    yield "`landscape -h` lists the commands, `landscape COMMAND -h` the options of one. `-v` logs each step.\n"
    every = click.Context(root, info_name="landscape")
    shown: dict[tuple[str, ...], str] = {}
    for name in root.list_commands(every):
        command = root.get_command(every, name)
        assert isinstance(command, cloup.Command)
        context = command.context_class(command, info_name=name, parent=root.context_class(root, info_name="landscape"))
        yield f"## landscape {name}\n"
        yield f"{escaped(command.help or '')}\n"
        yield f"`{' '.join(['landscape', name, *command.collect_usage_pieces(context)])}`\n"
        for argument in command.arguments:
            yield f"`{argument.make_metavar(context)}`: {escaped(getattr(argument, 'help', '') or '')}\n"
        for group in command.option_groups:
            yield f"**{group.title}.** {escaped(group.help or '')}\n"
            records = [record for option in group.options if (record := option.get_help_record(context))]
            before = shown.setdefault((group.title, *map(str, records)), name)
            if before != name:
                yield f"As of [landscape {before}](#landscape-{before}).\n"
                continue
            yield from table(("option", "meaning"), [(f"`{a}`", escaped(b)) for a, b in records])
        examples = (command.epilog or "").split("\n")[2:]
        yield "\n".join(["```", *(line.strip() for line in examples), "```", ""])


def names() -> Iterator[str]:
    """Yield the page of the registries: every name that can be chosen, with the first sentence of its function."""
    yield "# Names that can be chosen\n"
    yield "Help, errors and these tables are made of the same registries; your own go by `package.module:name`.\n"
    sections: Mapping[str, tuple[str, Mapping[str, Any]]] = {
        "Losses": ("`landscape.networks.losses.LOSSES`, for `--loss`", losses.LOSSES),
        "Matrices": ("`landscape.curvature.kinds.KINDS`, for `landscape hessian --operator`", kinds.KINDS),
        "Batch norm": ("`landscape.objective.batch_norm.POLICIES`, for `--bn`: the running statistics", POLICIES),
        "Data sets": ("`landscape.data.datasets.DATASETS`, for `--dataset`", datasets.DATASETS),
        "Networks": ("`landscape.networks.models.NETWORKS`, for `--model`", models.NETWORKS),
        "Groups of classes": ("`landscape.results.grouping.GROUPINGS`, for `--partition` and `--groups`", GROUPINGS),
        "Training methods": ("`trainers.methods.METHODS`, for `landscape train METHOD`", METHODS),
    }
    for title, (where, registry) in sections.items():
        yield f"## {title}\n"
        yield f"{where}.\n"
        yield from table(("name", "meaning"), [(f"`{name}`", _entry(what)) for name, what in registry.items()])
    yield "## Kinds of figures\n"
    yield "`landscape.plots.KIND_FIGURES`, for `landscape plot --kind`; the first of each result is the default.\n"
    rows = [
        (result, f"`{kind}`", f"{escaped(first(figure))} [`{figure.__name__}`](figures.md)")
        for result, figures in plots.KIND_FIGURES.items()
        for kind, figure in figures.items()
    ]
    yield from table(("result", "kind", "figure"), rows)


def python() -> Iterator[str]:
    """Yield the page of the names that `import landscape as ls` offers."""
    yield "# Python\n"
    yield "What `import landscape as ls` offers. Fields of results are listed with the [results](results.md).\n"
    for name in sorted(landscape.__all__, key=lambda n: (n[0].isupper(), n)):
        what = getattr(landscape, name)
        if inspect.ismodule(what) and name != "plots":
            some = "\n    options: {members: [start, stop, is_main]}" if name == "distributed" else ""
            yield f"::: {what.__name__}{some}\n"
        elif (inspect.isclass(what) or inspect.isroutine(what)) and what not in KINDS.values():
            yield f"::: {what.__module__}.{what.__qualname__}\n"


def training() -> Iterator[str]:
    """Yield the page of the names that `import trainers` offers."""
    yield "# Python: trainers\n"
    yield "What `import trainers` offers. [Train by methods for long tails](../training.md) shows how to use it.\n"
    for name in sorted(trainers.__all__, key=lambda n: (n[0].isupper(), n)):
        what = getattr(trainers, name)
        yield f"::: {what.__name__ if inspect.ismodule(what) else f'{what.__module__}.{what.__qualname__}'}\n"


def figures() -> Iterator[str]:
    """Yield the page of the functions that draw."""
    yield "# Figures\n"
    yield "Functions of `ls.plots` make a figure from a result. `ls.plots.write` writes it to a file.\n"
    for name in plots.__all__:
        if callable(function := getattr(plots, name)):
            yield f"::: {function.__module__}.{function.__qualname__}\n"


def results() -> Iterator[str]:
    """Yield the page of the fields of every result, which are also those of its file."""
    yield "# Results and files\n"
    yield (
        "Frozen dataclasses of NumPy arrays; in HDF5 a dataset for each array, of the same name, and an attribute "
        "for each number or text. nan means that there is no value. Fields that share an axis share its length.\n"
    )
    for kind, cls in KINDS.items():
        yield f"## {kind}\n"
        yield f"`landscape.results.{cls.__name__}`, version {cls.version}, joined along `{cls.along}`.\n"
        yield f"{escaped(inspect.getdoc(cls) or '')}\n"
        rows = []
        for item in fields(cls):
            axes, left_out = item.metadata["axes"], " (may be left out)" if item.metadata["optional"] else ""
            shape = "number or text" if axes is None else ", ".join(axes)
            rows.append((f"`{item.name}`", shape, item.metadata["unit"], escaped(item.metadata["doc"]) + left_out))
        yield from table(("field", "axes", "unit", "meaning"), rows)
        members = [
            (f"`{name}`", escaped(first(member))) for name, member in vars(cls).items() if _is_member(name, member)
        ]
        yield from table(("property or method", "meaning"), members)


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "commands": commands, "names": names, "python": python, "trainers": training, "figures": figures,
    "results": results,
}  # fmt: skip
"""The generated pages of reference/."""


# Text ---------------------------------------------------------------------------------------------------------------


def first(what: Any) -> str:
    """Return the first sentence of a docstring."""
    return " ".join((inspect.getdoc(what) or "").split("\n\n", maxsplit=1)[0].split())


def _entry(what: Any) -> str:
    """Return what a registry says of one of its names: a function's first sentence, or options."""
    if isinstance(what, Mapping):
        return ", ".join(f"`{name}={value}`" for name, value in what.items()) or "the defaults"
    if isinstance(what, kinds.Kind):
        return escaped(what.about)
    if isinstance(what, Policy):
        return escaped(what.does)
    if isinstance(what, datasets.Source):
        takes = ", ".join(f"`{name}`" for name in what.takes)
        return f"takes {takes}" if takes else "comes with the package"
    if isinstance(what, Grouping):
        groups = ", ".join(f"`{group}`" for group in what.groups)
        return f"{groups}: {escaped(first(what.make))}"
    function = getattr(what, "func", what)
    options = ", ".join(f"{k}={v}" for k, v in getattr(what, "keywords", {}).items())
    return escaped(first(function)) + (f" `{options}`" if options else "")


def _is_member(name: str, member: Any) -> bool:
    is_callable = (
        inspect.isfunction(member) or isinstance(member, classmethod | property) or hasattr(member, "attrname")
    )
    return is_callable and not name.startswith("_") and bool(inspect.getdoc(member))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table in Markdown, or nothing where it has no rows."""
    if rows:
        lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
        yield "".join(f"| {' | '.join(line)} |\n" for line in lines)


def escaped(text: str) -> str:
    """Keep Markdown and HTML from reading anything into text, but for what stands between backticks."""
    pieces = text.split("`")
    pieces[::2] = [_READ_INTO.sub(r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)
