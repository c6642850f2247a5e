"""The page: a template, a style sheet, two scripts and all data in one HTML file.

Every text of a result is escaped by the template, or passed as JSON to a script that writes it as text, so that a class
may have any name. A content security policy forbids the page to load anything.
"""

from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata, resources
from typing import Any

import jinja2

from landscape.errors import InputError
from landscape.report import curves, figures
from landscape.report.rows import columns_of, rows_of
from landscape.report.sources import SECTIONS, Source
from landscape.results import Surface


def page(sources: Sequence[Source], title: str = "Loss landscape") -> str:
    """Write a report.

    Args:
        sources: the results to show, at least one.
        title: title of the page.

    Returns:
        HTML that needs no other file. The same sources give the same text.

    Raises:
        InputError: there is a surface to rotate, and plotly is not installed.
    """
    turning = {source.result.kind for source in sources if curves.drawable(source)}
    script = plotly_script() if turning else ""
    rows = rows_of(sources)
    columns = columns_of(rows)
    data = {
        "frequency": curves.frequency(rows, columns),
        "densities": curves.densities(sources),
        "surfaces": curves.surfaces(sources),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("landscape.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("report.html.j2").render(
        title=title,
        version=metadata.version("loss-landscape-per-class"),
        style=_own("report.css"),
        scripts=[script] * bool(script) + [_own(f"{name}.js") for name in ("density", "charts", "report")],
        rows=rows,
        columns=columns,
        unsure=any(not cell.sure for row in rows for cell in row.cells.values()),
        data=data,
        turning=next((kind for kind in SECTIONS if kind in turning), None),
        sections=[s for s in (_section(kind, sources) for kind in SECTIONS) if s["results"]],
        sources=[_about(source) for source in sources],
    )


def plotly_script() -> str:
    """Return plotly's script.

    Returns:
        About five million characters.

    Raises:
        InputError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError(
            "rotating surfaces need plotly: run pip install 'plotly>=5', or leave out files of planes"
        ) from None
    return str(get_plotlyjs())


def _own(name: str) -> str:
    return (resources.files("landscape.report") / "page" / name).read_text("utf-8")


def _section(kind: str, sources: Sequence[Source]) -> dict[str, Any]:
    results = []
    for source in sources:
        if source.result.kind == kind:
            drawn, missing = figures.pictures(source.result)
            results.append({
                "model": source.model,
                "file": source.file,
                "verdict": source.result.verdict if isinstance(source.result, Surface) else "",
                "pictures": drawn,
                "missing": missing,
                "matrices": figures.matrices(source.result),
            })
    return {"kind": kind, "heading": SECTIONS[kind], "results": results}


def _about(source: Source) -> dict[str, Any]:
    """Return all information in a file about how it was made."""
    result = source.result
    single = {i.name: getattr(result, i.name) for i in fields(result) if i.metadata["axes"] is None}
    about = dict(single.pop("provenance"))
    return {
        "file": source.file,
        "kind": result.kind,
        "about": {"SHA-256 of the file": source.sha256, "version of the kind": result.version, **single, **about},
    }
