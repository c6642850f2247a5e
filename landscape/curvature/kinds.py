"""The curvature matrices that there are: how each one multiplies, what its trace is made of, how it is called.

With l_i the loss of sample i, z_i(theta) its logits, J_i their Jacobian and n the samples of the part:

    hessian            H = 1/n sum  d^2 l_i / d theta^2
    ggn                G = 1/n sum  J_i^T (d^2 l_i / d z^2) J_i
    residual           R = 1/n sum  sum_c (d l_i / d z_c) d^2 z_ic / d theta^2 = H - G
    fisher             F = 1/n sum  J_i^T (diag(p_i) - p_i p_i^T) J_i,  p_i = softmax(z_i): labels drawn from it
    empirical-fisher   E = 1/n sum  g_i g_i^T,   g_i = d l_i / d theta:  labels as they are

For the cross-entropy G = F. Weight decay adds its multiple of the identity to H, G and F. Sources: Martens 2020, "New
insights and perspectives on the natural gradient method"; Kunstner et al. 2019 on the empirical Fisher's limits.

A new matrix is one more entry of `KINDS`: the command line, help, traces, figures and tests read it there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from landscape.autodiff.backward import pull, push, second, second_of_each
from landscape.errors import arg, check_choice

Tensors: TypeAlias = tuple[Tensor, ...]
Batch: TypeAlias = tuple[Tensor, Tensor]
Gradient: TypeAlias = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(function, z) -> its gradient at z."""
Factors: TypeAlias = list[tuple[int, Tensor | None]]

KindName: TypeAlias = Literal["hessian", "ggn", "residual", "fisher", "empirical-fisher"]


@dataclass(frozen=True, kw_only=True)
class Functions:
    """What the matrices are made of: pure functions of a point and a batch of any size."""

    logits: Callable[[Tensors, Tensor], Tensor]  # (theta, inputs) -> (B, C)
    loss: Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> (B,)

    def losses(self, theta: Tensors, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""
        return self.loss(self.logits(theta, inputs), labels)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A symmetric matrix that is a sum over samples."""

    name: str  # as `--operator` calls it
    symbol: str  # in formulas and figures
    about: str  # in help
    decays: bool  # weight decay adds its multiple of the identity
    bends: bool  # second derivatives of the logits enter, and where these have a diagonal `factors` does not hold
    factors: Callable[[Functions, Tensors, Tensor, Tensor], Factors]
    """(functions, theta, inputs, labels) -> signs and s_ik (B, C), k = 1, 2, ...; the matrix's diagonal is the sum of
    sign (J_i^T s_ik)^2. None stands for the gradient of the loss itself."""
    decomposes: bool = False  # these take the eigenvectors of a matrix (C, C) for each sample

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """Multiply the sum over a batch by a vector in forward-over-reverse form, for tracing.

        Args:
            functions: logits and loss, which `torch.func` can transform.
            theta: the point.
            batch: inputs and labels.
            v: tensors of theta's shapes.

        Returns:
            The product in tensors of theta's shapes.
        """
        raise NotImplementedError

    def reverse(self, functions: Functions, theta: Tensors, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
        """Multiply the sum over a batch by several vectors by backward passes alone, for any model.

        Args:
            functions: logits and loss.
            theta: the point, tensors that require a gradient.
            batch: inputs and labels.
            vs: vectors in tensors of theta's shapes.

        Returns:
            A product for each vector.
        """
        raise NotImplementedError

    def curved(
        self, functions: Functions, theta: Tensors, batch: Batch
    ) -> tuple[Callable[[Tensors], Tensor], Tensors] | None:
        """Return the function, t -> (B,), that `reverse` differentiates twice, and where; None if it does not."""
        return None

    @property
    def remedy(self) -> str:
        """What may be done where PyTorch has no second derivative, or a wrong one."""
        return f"{arg('operator', 'empirical-fisher')} needs only the first"


@dataclass(frozen=True, kw_only=True)
class SecondDerivative(Kind):
    """The second derivative at theta of a function that has one value for each sample."""

    values: Callable[[Functions, Tensors, Batch, Gradient], Callable[[Tensors], Tensor]]
    """(functions, theta, batch, how to take a gradient) -> the function t -> (B,)."""

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """See `Kind.forward`."""
        values = self.values(functions, theta, batch, _by_transform)

        def summed(t: Tensors) -> Tensor:
            return values(t).sum()

        found: Tensors = jvp(grad(summed), (theta,), (v,))[1]
        return found

    def reverse(self, functions: Functions, theta: Tensors, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
        """See `Kind.reverse`."""
        return second(self.values(functions, theta, batch, _by_backward)(theta), theta, vs, self.remedy)

    def curved(self, functions: Functions, theta: Tensors, batch: Batch) -> tuple[Callable[[Tensors], Tensor], Tensors]:
        """See `Kind.curved`."""
        return self.values(functions, theta, batch, _by_backward), theta

    @property
    def remedy(self) -> str:
        """See `Kind.remedy`."""
        return f"{arg('operator', 'ggn')} needs only first derivatives of the model, " + (
            f"{arg('operator', 'empirical-fisher')} needs only first ones of the loss too"
        )


@dataclass(frozen=True, kw_only=True)
class Factored(Kind):
    """J^T M J, with J the Jacobian of some outputs of each sample and M a matrix between them."""

    outputs: Callable[[Functions, Tensors, Tensor, Tensor], Tensor]  # (functions, theta, inputs, labels) -> (B, ...)
    middle: Callable[[Tensor, Tensor], Tensor] | None  # (outputs, u) -> M u; None for the loss's second derivative

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """See `Kind.forward`."""

        def outputs(t: Tensors) -> Tensor:
            return self.outputs(functions, t, *batch)

        def summed(z: Tensor) -> Tensor:
            return functions.loss(z, batch[1]).sum()

        value: Tensor
        tangent: Tensor
        value, tangent = jvp(outputs, (theta,), (v,))[:2]
        between = jvp(grad(summed), (value,), (tangent,))[1] if self.middle is None else self.middle(value, tangent)
        pulled: Tensors = vjp(outputs, theta)[1](between)[0]
        return pulled

    def reverse(self, functions: Functions, theta: Tensors, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
        """See `Kind.reverse`."""
        inputs, labels = batch
        value, tangents = push(lambda some: self.outputs(functions, theta, inputs[some], labels[some]), theta, vs)
        if self.middle is None:
            z = value.detach().requires_grad_()
            found = second(functions.loss(z, labels), (z,), [(t,) for t in tangents], self.remedy)
            tangents = [t for (t,) in found]
        else:
            tangents = [self.middle(value.detach(), t) for t in tangents]
        return [pull(value, theta, t) for t in tangents]

    def curved(
        self, functions: Functions, theta: Tensors, batch: Batch
    ) -> tuple[Callable[[Tensors], Tensor], Tensors] | None:
        """See `Kind.curved`."""
        if self.middle is not None:
            return None
        z = self.outputs(functions, theta, *batch).detach()
        return lambda t: functions.loss(t[0], batch[1]), (z,)


def _by_transform(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    found: Tensor = grad(function)(z)
    return found


def _by_backward(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return pull(function(z), (z,), None)[0].detach()


def _losses(functions: Functions, theta: Tensors, batch: Batch, gradient: Gradient) -> Callable[[Tensors], Tensor]:
    return lambda t: functions.losses(t, *batch)


def _along_slopes(
    functions: Functions, theta: Tensors, batch: Batch, gradient: Gradient
) -> Callable[[Tensors], Tensor]:
    """Return t -> w^T z(t), with w = d l / d z at theta as a constant."""
    inputs, labels = batch
    slopes = gradient(lambda z: functions.loss(z, labels).sum(), functions.logits(theta, inputs))
    return lambda t: (slopes * functions.logits(t, inputs)).sum(1)


def _logits(functions: Functions, theta: Tensors, inputs: Tensor, labels: Tensor) -> Tensor:
    return functions.logits(theta, inputs)


def _covariance_of_labels(z: Tensor, u: Tensor) -> Tensor:
    """Multiply by diag(p) - p p^T, the covariance of a label that is drawn from p = softmax(z)."""
    p = z.softmax(dim=1)
    return p * (u - (p * u).sum(dim=1, keepdim=True))


def _roots(middle: Callable[[Functions, Tensor, Tensor], Tensor]) -> Callable[..., Factors]:
    """Return the factors of J^T M J from M, (B, C, C), by its eigenvectors."""

    @torch.no_grad()
    def factors(functions: Functions, theta: Tensors, inputs: Tensor, labels: Tensor) -> Factors:
        z = functions.logits(theta, inputs)
        values, vectors = torch.linalg.eigh(middle(functions, z.double(), labels))
        found: Factors = []
        # A user's loss need not be convex in the logits: what an eigenvalue adds has its sign.
        for sign in (1, -1):
            roots = (sign * values).clamp(min=0).sqrt()
            for k in torch.nonzero(roots.amax(0) > 1e-7 * values.abs().max().sqrt()).flatten().tolist():
                found.append((sign, (roots[:, k, None] * vectors[:, :, k]).to(z.dtype)))
        return found

    return factors


def _curvature_in_logits(functions: Functions, z: Tensor, labels: Tensor) -> Tensor:
    return second_of_each(lambda z: functions.loss(z, labels), z)


def _covariance(functions: Functions, z: Tensor, labels: Tensor) -> Tensor:
    p = z.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


HESSIAN = SecondDerivative(
    name="hessian",
    symbol="H",
    about="second derivatives of the loss",
    values=_losses,
    decays=True,
    bends=True,
    factors=_roots(_curvature_in_logits),
    decomposes=True,
)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        HESSIAN,
        Factored(
            name="ggn",
            symbol="G",
            about="Gauss-Newton: the Hessian of the network that is linear in its parameters",
            outputs=_logits,
            middle=None,
            decays=True,
            bends=False,
            factors=_roots(_curvature_in_logits),
            decomposes=True,
        ),
        SecondDerivative(
            name="residual",
            symbol="R",
            about="the Hessian less Gauss-Newton: curvature of the network itself",
            values=_along_slopes,
            decays=False,  # it is in H and in G
            bends=True,
            factors=lambda *_: [],
        ),
        Factored(
            name="fisher",
            symbol="F",
            about="squared gradients for labels drawn from the model",
            outputs=_logits,
            middle=_covariance_of_labels,
            decays=True,
            bends=False,
            factors=_roots(_covariance),
            decomposes=True,
        ),
        Factored(
            name="empirical-fisher",
            symbol=r"\hat{F}",
            about="squared gradients for the labels of the data",
            outputs=lambda functions, theta, inputs, labels: functions.losses(theta, inputs, labels),
            middle=lambda losses, u: u,
            decays=False,
            bends=False,
            factors=lambda *_: [(1, None)],
        ),
    )
}
"""By name, in the order in which help lists them."""


def find(kind: str | Kind) -> Kind:
    """Return a kind of matrix by its name; one that is a kind already is returned as it is.

    Args:
        kind: one of `KINDS`, or a kind of the caller's own.

    Returns:
        The kind.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(kind, Kind):
        return kind
    check_choice("operator", kind, KINDS)
    return KINDS[kind]
