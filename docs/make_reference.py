"""Write docs/reference.md from the code: `make reference`, or `python docs/make_reference.py --check`.

Signatures and docstrings of the public names, the declared fields of every result, and the commands with their options
as the command line knows them. Nothing is said twice: what the page lacks, the code lacks. With --check nothing is
written; it fails if the page differs.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import landscape
from landscape import plots
from landscape.cli import root
from landscape.results import KINDS

PAGE = Path(__file__).resolve().parent / "reference.md"

HEAD = """\
# Reference

<!-- Written by docs/make_reference.py: change the code and run `make reference`. -->

[Commands](#commands) · [Python](#python) · [Figures](#figures) · [Results](#results), which are also what a file holds
"""

_WIDTH = 100  # of a signature, beyond which each argument has a line
_MODULES = re.compile(r"\b(?:landscape|collections|numpy|pathlib|typing|matplotlib|torch)(?:\.\w+)*\.(?=[A-Za-z]\w*\b)")
_READ_INTO = re.compile(r"([\\*<\[]|(?<!\w)_|_(?!\w))")  # what Markdown and HTML take for their own
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Source):\s*(.*)$")
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w[\w., ]*): (.*)$")


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_commands(), *_names(), *_figures(), *_results()]).rstrip("\n") + "\n"


def _commands() -> Iterator[str]:
    commands = {name: root.get_command(None, name) for name in root.list_commands(None)}  # type: ignore[arg-type]
    options = {name: _options(name, command) for name, command in commands.items()}
    analyses = [options[name] for name, command in commands.items() if _loads(command)]
    shared = [record for record in analyses[0] if all(record in others for others in analyses)]
    yield "## Commands\n"
    yield "`landscape -h` lists them, `-v` before or behind a command logs what is done.\n"
    yield "### Options of every analysis\n"
    yield "Commands that take a `--ckpt` have these beside their own:\n"
    yield from _table(("option", "meaning"), shared)
    for name, command in commands.items():
        yield f"### `landscape {name}`\n"
        yield from _docstring(command.help or "")
        usage = " ".join(["landscape", name, *command.collect_usage_pieces(_context(name, command))])
        yield f"`{usage}`\n"
        own = [r for r in options[name] if not (_loads(command) and r in shared)]
        if _loads(command):
            yield "Beside the [options of every analysis](#options-of-every-analysis):\n"
        yield from _table(("option", "meaning"), own)


def _loads(command: Any) -> bool:
    return any("--ckpt" in p.opts and p.required for p in command.params)


def _context(name: str, command: Any) -> Any:
    above = root.context_class(root, info_name="landscape", **root.context_settings)
    return root.context_class(command, info_name=name, parent=above)


def _options(name: str, command: Any) -> list[tuple[str, str]]:
    """Return what `-h` says of each option, but of those that all commands have."""
    context = _context(name, command)
    records = (p.get_help_record(context) for p in command.params if "-v" not in p.opts)
    return [(f"`{left}`", _escaped(right)) for left, right in filter(None, records)]


def _names() -> Iterator[str]:
    yield "## Python\n"
    yield "What `import landscape as ls` offers. A result's class is among the [results](#results).\n"
    for name in sorted(landscape.__all__, key=lambda n: (n[0].isupper(), n)):
        if name != "plots":
            yield from _name(f"ls.{name}", getattr(landscape, name))


def _figures() -> Iterator[str]:
    yield "## Figures\n"
    yield "Functions of `ls.plots`: a result in, a figure out. `ls.plots.write` puts it into a file.\n"
    for name in plots.__all__:
        if callable(function := getattr(plots, name)):
            yield from _name(f"ls.plots.{name}", function)


def _name(shown: str, what: Any) -> Iterator[str]:
    yield f"### `{shown}`\n"
    if not inspect.isclass(what):
        yield f"```text\n{_signature(shown, what)}\n```\n"
        yield from _docstring(inspect.getdoc(what) or "")
        return
    yield from _docstring(inspect.getdoc(what) or "")
    if what in KINDS.values():
        yield f"Fields: see the result [`{what.kind}`](#{what.kind}).\n"
        return
    yield from _members(what)


def _members(cls: type) -> Iterator[str]:
    """List the public methods and properties that a class defines itself, by the first sentence of each."""
    rows = []
    for name, member in vars(cls).items():
        function = inspect.unwrap(member.__func__) if isinstance(member, classmethod) else member
        described = inspect.getdoc(function)
        if name.startswith("_") or not described or not _is_member(member):
            continue
        shown = _signature(name, getattr(cls, name)) if callable(getattr(cls, name)) else name
        shown = f"{name}(...)" if "\n" in shown else shown
        rows.append((
            f"`{shown}`",
            _escaped(" ".join(described.split("\n\n", maxsplit=1)[0].split())),
        ))
    if rows:
        yield from _table(("member", "meaning"), rows)


def _is_member(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | property) or hasattr(member, "attrname")


def _signature(shown: str, function: Callable[..., Any]) -> str:
    """Return the call with the types of its arguments, without the modules that they are of."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name != "self"]
    text = shown + _MODULES.sub("", str(signature.replace(parameters=own))).replace("-> '", "-> ").removesuffix("'")
    if len(text) <= _WIDTH:
        return text
    pieces = ["*" if p.kind is p.KEYWORD_ONLY else "" for p in own]
    first_keyword = pieces.index("*") if "*" in pieces else -1
    lines = []
    for i, parameter in enumerate(own):
        if i == first_keyword and not any(p.kind is p.VAR_POSITIONAL for p in own):
            lines.append("    *,")
        lines.append(f"    {_MODULES.sub('', str(parameter))},")
    ending = text.rpartition(") -> ")[2]
    return "\n".join([f"{shown}(", *lines, f") -> {ending}" if ") -> " in text else ")"])


def _results() -> Iterator[str]:
    yield "## Results\n"
    yield (
        "Frozen dataclasses of NumPy arrays; in HDF5 a dataset for each array, of the same name, and an attribute "
        "for each number or text. nan means that there is no value. Fields that share an axis share its length.\n"
    )
    for kind, cls in KINDS.items():
        yield f"### {kind}\n"
        yield f"`landscape.results.{cls.__name__}`, version {cls.version}, joined along `{cls.along}`.\n"
        yield from _docstring(inspect.getdoc(cls) or "")
        rows = []
        for item in fields(cls):
            axes, left_out = item.metadata["axes"], " (may be left out)" if item.metadata["optional"] else ""
            shape = "number or text" if axes is None else ", ".join(axes)
            rows.append((f"`{item.name}`", shape, item.metadata["unit"], _escaped(item.metadata["doc"]) + left_out))
        yield from _table(("field", "axes", "unit", "meaning"), rows)
        yield from _members(cls)


def _docstring(text: str) -> Iterator[str]:
    """Turn a docstring in Google's style into Markdown: paragraphs, and a list for what is explained by name."""
    for block in inspect.cleandoc(text).split("\n\n"):
        lines = block.split("\n")
        section = _SECTION.match(lines[0])
        if section is None:
            shown = all(line.startswith("    ") for line in lines) or block.startswith("landscape ")
            yield f"```text\n{inspect.cleandoc(block)}\n```\n" if shown else f"{_escaped(' '.join(block.split()))}\n"
            continue
        word, rest = section.groups()
        entries = _entries(lines[1:]) if word in {"Args", "Raises"} else []
        if entries:
            yield f"{word}:\n"
            yield "".join(f"- `{name}`: {_escaped(meaning)}\n" for name, meaning in entries)
        else:
            yield f"{word}: {_escaped(' '.join([rest, *(line.strip() for line in lines[1:])]).strip())}\n"


def _entries(lines: Sequence[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in lines:
        if entry := _ENTRY.match(line):
            found.append((entry[1], entry[2]))
        elif found:
            name, meaning = found.pop()
            found.append((name, f"{meaning} {line.strip()}"))
    return found


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    yield "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped(text: str) -> str:
    """Keep Markdown and HTML from reading anything into text, but for what stands between backticks."""
    pieces = text.split("`")
    pieces[::2] = [_READ_INTO.sub(r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    new = page()
    if not parser.parse_args().check:
        PAGE.write_text(new, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        sys.exit("docs/reference.md is not what the code says: run `make reference`")


if __name__ == "__main__":
    main()
