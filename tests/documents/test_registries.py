"""Each list of names is typed once: no other file has a second list, and the typed face has all names."""

import ast
import functools
import inspect
from pathlib import Path
from typing import get_args

import pytest

import landscape
from landscape import results
from landscape.curvature import kinds
from landscape.data import datasets
from landscape.networks import losses, models
from landscape.objective import batch_norm, loading
from landscape.report import sources
from landscape.results import features, grouping
from trainers import methods, recipes

REGISTRIES = {
    "losses": (losses, losses.LOSSES),
    "networks": (models, models.NETWORKS),
    "data sets": (datasets, datasets.DATASETS),
    "long tails": (datasets, datasets.IMBALANCE),
    "draws of long tails": (datasets, datasets.DRAWS),
    "matrices": (kinds, kinds.KINDS),
    "batch norm": (batch_norm, batch_norm.POLICIES),
    "kinds of results": (results, results.KINDS),
    "sections of a report": (sources, sources.SECTIONS),
    "groups of classes": (grouping, grouping.NAMES),
    "forms of quality": (features, features.QUALITY),
    "training methods": (methods, methods.METHODS),
    "perturbations": (recipes, recipes.PERTURBATIONS),
}
FACE = {
    "matrices": kinds.KindName,
    "batch norm": batch_norm.BatchNorm,
    "long tails": loading.Imbalance,
    "draws of long tails": loading.ImbalanceDraw,
}


@functools.cache
def collections():
    """Lists, sets and tuples of nothing but two texts or more, with their files and lines."""
    found, root = [], Path(landscape.__file__).parents[1]
    for file in (f for package in ("landscape", "trainers") for f in (root / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Set | ast.Tuple) and len(node.elts) >= 2:
                values = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
                if all(isinstance(value, str) for value in values):
                    found.append((str(file), node.lineno, values))
    return found


@pytest.mark.parametrize("name", REGISTRIES)
def test_no_other_file_lists_the_names_of_a_registry(name):
    home, registry = REGISTRIES[name]
    face, least = FACE.get(name), 2 if name == "matrices" else min(3, len(registry))
    for file, line, values in collections():
        if file != inspect.getfile(home) and len(values) >= least and (face is None or tuple(values) != get_args(face)):
            assert not set(values) <= set(registry), f"{file}:{line}: {values}"


@pytest.mark.parametrize("name", FACE)
def test_the_types_of_arguments_hold_the_names_of_the_registry(name):
    assert get_args(FACE[name]) == tuple(REGISTRIES[name][1])
