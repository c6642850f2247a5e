"""Make operators: the curvature matrices of an objective.

kinds.py defines the matrices and how each multiplies; algebra.py defines what an operator can do.
"""

from functools import cache, partial
from typing import Literal, TypeAlias, get_args

import torch

from landscape.autodiff.differentiable import differentiable_attention
from landscape.callables import checked
from landscape.curvature import traces
from landscape.curvature.algebra import Exact, Operator
from landscape.curvature.checks import refuse_zero, some_of
from landscape.curvature.functions import functions_of
from landscape.curvature.kinds import Factored, Kind, KindName, find
from landscape.curvature.products import Part, Problem, Products, checked_trace
from landscape.errors import InputError, arg, check_choice
from landscape.objective.objective import Objective

Backend: TypeAlias = Literal["auto", "reverse", "linearized"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
CACHE_BYTES = 2 * 2**30
"""Default memory for values that are kept between products."""


@checked
def curvature_operator(
    objective: Objective,
    kind: KindName | Kind = "hessian",
    *,
    backend: Backend = "auto",
    cache_bytes: int = CACHE_BYTES,
) -> Operator:
    """Return a curvature matrix for every part of an objective.

    Args:
        objective: model, loss and data in parts.
        kind: a name of `kinds.KINDS`, or a `Kind` of your own.
        backend: "reverse" for plain reverse mode, "linearized" for the traced graph, "auto" for the traced graph if it
            is available and agrees with reverse mode.
        cache_bytes: memory for values that are kept between products; other values are computed again in every product.

    Returns:
        The operator; its products are exact up to rounding.

    Raises:
        InputError: an unknown kind or backend, "linearized" for a model that cannot be traced, or a model that has
            changed since its objective was made.
        NumericalError: the loss has no second derivative; or the matrix needs its second derivative in the model's
            outputs, but that is zero; or a product is not finite.
    """
    found = find(kind)
    check_choice("backend", backend, BACKENDS)
    objective.refuse_stale()
    if objective.draws is not None:
        refuse_draws(found)
    problem = problem_of(objective)
    if isinstance(found, Factored) and found.factors is not None:
        inputs, targets = some_of(problem.parts[0].example(), 4)
        with differentiable_attention(), torch.no_grad():
            z = objective.logits(objective.theta, inputs)
        refuse_zero(objective, found.factors, z, targets)
    traced = None if backend == "reverse" else checked_trace(problem, found, required=backend == "linearized")
    refusal = cache(partial(traces.refusal, objective, found))

    def of(products: Products, own: Objective) -> Operator:
        def share() -> Operator:
            shared = own.shared()
            return of(products.of(problem_of(shared)), shared)[products.problem.names]

        return Operator(
            matvec=products,
            parts=products.problem.names,
            size=problem.layout.size,
            dtype=problem.dtype,
            device=problem.device,
            restrict=lambda parts: of(products.restrict(parts), own),
            exact=Exact(
                cost=objective.outputs.size if found.decomposes else 1,
                refusal=refusal,
                trace=lambda part: traces.trace(own, found, own.part(part)),
                diagonal=lambda part: traces.diagonal(own, found, own.part(part)),
                sampled=lambda part, seed: traces.sampled(own, found, own.part(part), seed),
            ),
            cached=products.cached,
            keeps=products.keeps,
            name=found.name,
            symbol=found.symbol,
            objective=objective,
            source=lambda: {"operator": found.name, **objective.source},
            team=own.team,
            share=share,
        )

    return of(Products(problem, found, traced, cache_bytes), objective)


def refuse_draws(kind: Kind, name: str = "samples") -> None:
    """Raise InputError for a matrix that weighted draws cannot estimate; `name` is the argument that asks for them."""
    if not kind.scales:
        raise InputError(
            f"{arg(name)} needs a matrix that is linear in the loss, the {kind.name} is not: leave it out, or use "
            f"{arg('operator', 'ggn')}"
        )


def problem_of(objective: Objective) -> Problem:
    """Return everything that products need from an objective, as values."""
    names, counts, size = objective.partition.names, objective.counts, objective.batch_size
    return Problem(
        functions=functions_of(objective),
        theta=objective.theta,
        fixed=objective.fixed,
        functions_with=partial(functions_of, objective),
        known=objective.known,
        layout=objective.layout,
        parts=tuple(
            Part(
                name=name,
                batch=partial(objective.batch, p, size=size),  # the same batches, also when others become smaller
                n_batches=objective.n_batches(p),
                n_summed=objective.team.largest(len(objective.members[p])),
                divisor=int(counts[p]),
                example=partial(objective.example, p),
            )
            for p, name in enumerate(names)
        ),
        weight_decay=objective.weight_decay,
        dtype=objective.dtype,
        device=objective.device,
        team=objective.team,
        wide=cache(lambda: problem_of(objective.in_dtype(torch.float64))),
    )


@checked
def hessian(objective: Objective) -> Operator:
    """Return the Hessian of each part's mean loss, as `curvature_operator(objective, "hessian")`."""
    return curvature_operator(objective, "hessian")


@checked
def ggn(objective: Objective) -> Operator:
    """Return the generalised Gauss-Newton matrix of each part, as `curvature_operator(objective, "ggn")`."""
    return curvature_operator(objective, "ggn")


@checked
def residual(objective: Objective) -> Operator:
    """Return the Hessian minus the Gauss-Newton matrix of each part, as `curvature_operator(objective, "residual")`."""
    return curvature_operator(objective, "residual")


@checked
def fisher(objective: Objective, *, empirical: bool = False) -> Operator:
    """Return the Fisher matrix of each part, with labels drawn from the model or those of the data (`empirical`)."""
    return curvature_operator(objective, "empirical-fisher" if empirical else "fisher")
