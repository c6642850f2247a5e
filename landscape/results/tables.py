"""The columns of the tables of each kind of result, declared once.

A new column is one entry here; column.py says what an entry has, and columns.py makes the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from landscape.results import column_values
from landscape.results.column import Column
from landscape.results.measures import MEASURES
from landscape.results.written import number


def _count(head: str, field: str, **more: Any) -> Column:
    return Column(head=head, field=field, form="count", **more)


def _samples(field: str, **more: Any) -> Column:
    """Return the column of the error of a number over samples."""
    return Column(head="± samples", field=f"{field}_sampling_stderr", after=column_values.of_draw, **more)


TRAINED = _count(
    "in training", "train_counts", missing="unknown", table=False, summary="training samples", key="trained"
)
SAMPLES = _count("samples", "n_samples", missing="unknown", summary="samples", key="samples")
LOSS = Column(head="loss", field="loss", error="loss_stderr", of_error="samples", summary="loss")
ACCURACY = Column(
    head="accuracy", field="accuracy", error="accuracy_stderr", of_error="samples", form="percent", summary="accuracy"
)
MEASURED = tuple(
    Column(head=m.name, field=m.field, error=m.error, of_error="samples", form=m.form, summary=m.name) for m in MEASURES
)
_DRAWN_LOSS, _DRAWN_ACCURACY, *_DRAWN_MEASURED = (
    replace(column, after=column_values.of_draw) for column in (LOSS, ACCURACY, *MEASURED)
)
_CENTRE = Column(
    head="loss at the centre",
    field="centre_loss",
    error="centre_loss_stderr",
    of_error="samples",
    after=column_values.of_draw,
    compared=True,
    summary="loss",
    key="loss",
)
_CENTRE_ON_SURFACE = Column(head="with the surface's statistics", field="centre_policy_loss")
_CENTRE_ACCURACY = replace(_DRAWN_ACCURACY, field="centre_accuracy", error="centre_accuracy_stderr", key="accuracy")
_COMPARED_LOSS = replace(LOSS, compared=True)
_GRADIENTS_LOSS = replace(_DRAWN_LOSS, error="loss_sampling_stderr")
_SURFACE = (
    TRAINED,
    SAMPLES,
    _CENTRE,
    _CENTRE_ON_SURFACE,
    _CENTRE_ACCURACY,
    *_DRAWN_MEASURED,
    Column(head="lowest", field="lowest_loss"),
    Column(
        head="at",
        field="lowest_position",
        cell=lambda surface, p: ", ".join(f"{c:.3g}" for c in surface.lowest_position[p]),
    ),
)


def _of_features(head: str, field: str, **more: Any) -> Column:
    """Return the column of a number of features, with its error over samples."""
    after = column_values.of_draw
    return Column(head=head, field=field, error=f"{field}_stderr", of_error="samples", after=after, **more)


def _of_gradients(head: str, field: str, **more: Any) -> Column:
    """Return the column of a number of gradients; if its error over samples is known, it shows whether a draw's."""
    error = f"{field}_sampling_stderr"

    def after(gradients: Any, part: int) -> str:
        return "" if getattr(gradients, error) is None else column_values.of_draw(gradients, part)

    return Column(head=head, field=field, error=error, of_error="samples", after=after, **more)


def _doubling(place: str, key: str) -> Column:
    heading = f"doubling radius {place}"
    return Column(
        head="doubling radius",
        field="doubling_radius",
        missing="unknown",
        endless="none",
        compared=True,
        summary=heading,
        key=key,
    )


def _rise(place: str, key: str) -> Column:
    return Column(
        head="worst rise",
        field="worst_rise",
        detail=lambda surface: "" if math.isnan(surface.radius) else f"within {surface.radius:.4g}",
        compared=True,
        summary=f"worst rise {place}",
        key=key,
    )


_PLANE = (*_SURFACE, _doubling("in the plane", "doubling_radius"), _rise("in the plane", "plane_rise"))

TABLES: Mapping[str, Sequence[Column]] = {
    "spectrum": (
        TRAINED,
        SAMPLES,
        _count("summed over", "n_used", missing="unknown", when=lambda s: bool((s.n_used < s.n_samples).any())),
        LOSS,
        ACCURACY,
        *MEASURED,
        Column(
            head="lambda_max",
            field="lambda_max",
            error="lambda_max_residual",
            of_error="residual",
            sure="converged",
            samples="lambda_max_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
            summary="lambda_max",
        ),
        _samples("lambda_max"),
        Column(
            head="lambda_min",
            field="lambda_min",
            error="lambda_min_residual",
            of_error="residual",
            summary="lambda_min",
        ),
        Column(
            head="trace",
            field="trace",
            error="trace_stderr",
            of_error="estimate",
            samples="trace_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
            summary="trace",
        ),
        _samples("trace"),
        *(
            Column(
                head=heading,
                field="sample_uncertainty",
                error="sample_uncertainty",
                of_error="samples",
                values=values,
                key=key,
                doc=doc,
                when=column_values.has_samples,
                table=False,
                summary=heading,
            )
            for key, heading, values, doc in column_values.FACTORS
        ),
        Column(
            head="H - G",
            field="beyond_max",
            cell=lambda s, p: f"{number(s.beyond_min[p])} to {number(s.beyond_max[p])}",
            when=lambda s: s.beyond_max is not None and bool(np.isfinite(s.beyond_max).any()),
        ),
        Column(
            head="negative",
            field="negative_curvature",
            error="negative_curvature_stderr",
            form="percent",
            summary="negative curvature",
            key="negative",
        ),
    ),
    "traces": (
        SAMPLES,
        LOSS,
        ACCURACY,
        *MEASURED,
        Column(
            head="trace",
            detail=column_values.of_matrix("operator"),
            field="trace",
            error="trace_stderr",
            of_error="s.e. at most",
            samples="trace_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
        ),
        _samples("trace"),
        Column(
            head="lambda_max",
            detail=column_values.of_matrix("lambda_max_matrix"),
            matrix="lambda_max_matrix",
            field="lambda_max",
            error="lambda_max_above",
            of_error="rows left out",
            above=True,
            samples="lambda_max_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
        ),
        _samples("lambda_max", matrix="lambda_max_matrix"),
    ),
    "surface": _PLANE,
    "trajectory": _PLANE,
    "line": (
        *_SURFACE,
        _doubling("on the line", "doubling_on_line"),
        _rise("on the line", "line_rise"),
        Column(
            head="barrier",
            field="barrier",
            error="barrier_stderr",
            of_error="samples at most",
            after=column_values.of_draw,
            compared=True,
            summary="barrier",
        ),
    ),
    "sharpness": (
        TRAINED,
        SAMPLES,
        _COMPARED_LOSS,
        ACCURACY,
        *MEASURED,
        Column(head="SAM's step", field="first_order_rise"),
        _samples("first_order_rise"),
        Column(
            head="worst rise",
            field="worst_rise",
            detail=lambda s: f"within {'adaptive ' * s.adaptive}rho {s.rho:g}",
            samples="worst_rise_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
            summary="worst rise in the ball",
            key="ball_rise",
        ),
        _samples("worst_rise"),
        Column(
            head="rise under noise",
            field="noise_rise",
            error="noise_rise_stderr",
            detail=lambda s: f"of {s.sigma:g}",
            samples="noise_rise_sampling_stderr",
            after_samples=column_values.of_draw,
            compared=True,
            summary="rise under noise",
        ),
        _samples("noise_rise"),
        Column(
            head="doubling radius",
            field="doubling_radius",
            error="doubling_radius_spread",
            of_error="spread",
            samples="doubling_radius_sampling_stderr",
            after_samples=column_values.of_draw,
            missing="unknown",
            endless="none",
            compared=True,
            summary="doubling noise",
            key="doubling_noise",
        ),
        _samples("doubling_radius"),
    ),
    "sensitivity": (
        TRAINED,
        SAMPLES,
        _DRAWN_LOSS,
        _DRAWN_ACCURACY,
        *_DRAWN_MEASURED,
        Column(head="changes most along", field="mean_loss_change", cell=lambda s, p: s.directions[s.strongest()[p]]),
        Column(
            head="its change",
            field="mean_loss_change",
            error="mean_loss_change_stderr",
            of_error="samples",
            after=column_values.of_draw,
            values=column_values.strongest,
            doc="change of the mean loss along the eigenvector that changes it most",
            summary="change of the loss along an eigenvector",
            key="dependence",
        ),
        Column(
            head="of accuracy",
            field="mean_accuracy_change",
            error="mean_accuracy_change_stderr",
            of_error="samples",
            after=column_values.of_draw,
            form="percent",
            values=column_values.accuracy_there,
            doc="change of the accuracy along the eigenvector that changes the mean loss most",
            key="accuracy_dependence",
            when=lambda s: s.mean_accuracy_change is not None,
        ),
        Column(
            head="loss along random directions",
            field="mean_loss_change",
            error="mean_loss_change_stderr",
            of_error="s.d.",
            values=lambda s: s.of_control(s.mean_loss_change),
            doc="change of the mean loss along random directions, mean and standard deviation",
            key="control",
        ),
    ),
    "gradients": (
        TRAINED,
        SAMPLES,
        _count("in batches", "batches", when=lambda gradients: bool(gradients.batch_size)),
        _GRADIENTS_LOSS,
        Column(
            head="|g_p|",
            field="norm",
            error="norm_stderr",
            rounding=lambda gradients: gradients.only_rounding("norm")[-1],
            samples="norm_sampling_stderr",
            after_samples=column_values.of_draw,
            summary="gradient norm",
            key="gradient",
        ),
        _samples("norm"),
        Column(
            head="cos(g_p, g)",
            field="cosine",
            error="cosine_stderr",
            samples="cosine_sampling_stderr",
            after_samples=column_values.of_draw,
            summary="cosine with the whole gradient",
            key="agreement",
        ),
        _samples("cosine"),
        _of_gradients("along g", "projected"),
        _of_gradients("|h_p|", "specific"),
        _of_gradients("rho_p", "radius"),
        _of_gradients("of g", "contribution", form="percent"),
        Column(head="conflicts", field="conflict", cell=column_values.conflicts),
    ),
    "features": (
        TRAINED,
        SAMPLES,
        _DRAWN_LOSS,
        _DRAWN_ACCURACY,
        _of_features("Q", "quality", summary="feature quality"),
        _of_features("Q inverse", "quality_inverse"),
        _of_features("Dis", "distance"),
        Column(head="nearest", field="nearest", cell=column_values.nearest),
        _of_features("Var", "variance"),
        _of_features("|mu_c - mu|", "mean_norm"),
        _of_features("cos(mu_c, w_c)", "alignment"),
        _of_features("NCM ≠ net", "disagreement", form="percent"),
    ),
    "history": (
        TRAINED,
        _count("test samples", "test_counts", missing="unknown", summary="samples", key="samples"),
        Column(
            head="test loss",
            field="test_loss_per_class",
            error="test_loss_per_class_stderr",
            of_error="samples",
            summary="loss",
            key="loss",
        ),
        Column(
            head="test accuracy",
            field="test_accuracy_per_class",
            error="test_accuracy_per_class_stderr",
            of_error="samples",
            form="percent",
            summary="accuracy",
            key="accuracy",
        ),
        Column(head="Q", field="quality", summary="feature quality"),
    ),
    "distances": (
        TRAINED,
        SAMPLES,
        Column(
            head="way to the convergence point",
            field="norm",
            values=column_values.ways,
            doc="Euclidean distance from the start to the part's convergence point, mean over the runs",
            summary="way to the convergence point",
            key="way",
        ),
    ),
    "points": (SAMPLES, _DRAWN_LOSS, _DRAWN_ACCURACY),
}
"""By kinds; a surface over one direction is a "line"."""
