"""The curvature matrices: how each one multiplies, what determines its trace, and its names.

With l_i the loss of sample i, z_i(theta) its arguments (the logits, for classes), J_i their Jacobian,
q_i = -log p(target; z_i) and n the number of samples of the part:

    hessian            H = 1/n sum  d^2 l_i / d theta^2
    ggn                G = 1/n sum  J_i^T (d^2 l_i / d z^2) J_i
    residual           R = 1/n sum  sum_c (d l_i / d z_c) d^2 z_ic / d theta^2 = H - G
    fisher             F = 1/n sum  J_i^T (d^2 q_i / d z^2) J_i:  targets drawn from the model
    empirical-fisher   E = 1/n sum  g_i g_i^T,   g_i = d l_i / d theta:  targets of the data

For classes d^2 q / d z^2 = diag(p) - p p^T with p = softmax(z); for squared error it is a multiple of the identity. z
are natural parameters, so it is the same for every target. If the loss is q, G = F. Weight decay adds its multiple of
the identity to H, G and F. Sources: Martens 2020, "New insights and perspectives on the natural gradient method";
Kunstner et al. 2019 on the limits of the empirical Fisher.

A new matrix that is a sum over samples, with a product for each batch, is a new entry of `KINDS`: the command line,
help, traces, figures and tests read it there. Any other matrix, such as K-FAC, is an `Operator` (algebra.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from landscape.autodiff import trees
from landscape.autodiff.backward import first_only, pull, push, second, second_of_each
from landscape.autodiff.differentiable import twice_forward
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.curvature.middles import Eigenvectors, Middle, Probabilities
from landscape.errors import InputError, arg, check_choice
from landscape.networks import losses
from landscape.objective import precise
from landscape.objective.draws import MOST_OUTPUTS
from landscape.objective.weighing import Weighed

Tensors: TypeAlias = tuple[Tensor, ...]
Batch: TypeAlias = tuple[Tree, Tree]
Loss: TypeAlias = Callable[[Tensor, Tree], Tensor]
"""(z (B, C), targets) -> one value per sample, (B,)."""
Gradient: TypeAlias = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(function, z) -> its gradient at z."""
KindName: TypeAlias = Literal["hessian", "ggn", "residual", "fisher", "empirical-fisher"]


class Losses(Protocol):
    """Anything that has losses, such as `Functions` and objectives."""

    @property
    def loss(self) -> Loss:
        """The loss of each sample."""

    @property
    def likelihood(self) -> Loss | None:
        """-log p(target) of the distribution that the logits define; None if the task has no distribution."""


@dataclass(frozen=True, kw_only=True)
class Functions:
    """The functions that define the matrices: pure functions of a point and a batch of any size."""

    logits: Callable[[Tensors, Tree], Tensor]  # (theta, inputs) -> (B, C)
    loss: Loss
    likelihood: Loss | None = None
    widens: bool = False  # losses of the logits are computed in float64, see objective/precise.py

    def losses(self, theta: Tensors, inputs: Tree, targets: Tree) -> Tensor:
        """Return the loss of each sample, (B,)."""
        return self.values(self.loss, self.logits(theta, inputs), targets)

    def values(self, loss: Loss, z: Tensor, targets: Tree) -> Tensor:
        """Return the values of a loss, (B,), through which derivatives flow back to logits (B, C) of any precision."""
        return precise.values(loss, z, targets) if self.widens else loss(z, targets)


def loss_of(of: Losses) -> Loss:
    """Return the loss itself."""
    return of.loss


def likelihood_of(of: Losses) -> Loss:
    """Return the negative log-likelihood; its second derivative in the logits defines the Fisher matrix.

    Args:
        of: has the losses.

    Returns:
        (logits, targets) -> (B,).

    Raises:
        InputError: the loss has no distribution.
    """
    if of.likelihood is None:
        raise InputError(
            "the Fisher matrix draws targets from the distribution whose likelihood is the loss, but this loss has "
            f"none: {arg('operator', 'ggn')} takes the loss as it is, {arg('operator', 'empirical-fisher')} the "
            "targets of the data"
        )
    return of.likelihood


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The matrix J_i^T M_i J_i of each sample as a sum of signed squares.

    Either J_i is the Jacobian of the sample's logits, and M_i = sum_k sign_ik s_ik s_ik^T by its eigenvectors; or J_i
    is the gradient of the sample's loss, and M_i = 1.
    """

    middle: Callable[[Losses], Loss] | None = None  # has M_i as its second derivative; None for gradients of the loss

    def outputs(self, functions: Functions, z: Tensor, targets: Tree) -> Tensor:
        """Return the outputs of the Jacobian: logits (B, C), or losses (B,)."""
        return functions.values(functions.loss, z, targets) if self.middle is None else z

    @torch.no_grad()
    def split(self, of: Losses, z: Tensor, targets: Tree) -> Middle:
        """Split M_i of each sample.

        Args:
            of: has the losses.
            z: from `outputs`.
            targets: of the samples.

        Returns:
            M_i as a sum of signed squares; for losses, the number 1.
        """
        if self.middle is None:
            return Eigenvectors.of_losses(len(z))
        z = wide(z)
        targets = trees.to(trees.mapped(lambda t: t.to(z.device), targets), z.device, z.dtype)
        if z.shape[1:].numel() > MOST_OUTPUTS and self.is_closed(of, targets):
            return Probabilities.of(z, targets[1] if isinstance(self.middle(of), Weighed) else None)
        return Eigenvectors.of(between(self.middle(of), z, targets))

    def is_closed(self, of: Losses, targets: Tree) -> bool:
        """Say whether M_i is that of the cross-entropy of classes, which needs no eigenvectors."""
        if self.middle is None:
            return True
        loss = self.middle(of)
        if isinstance(loss, Weighed):
            return loss.power == 1 and losses.of_classes(loss.of, targets[0])
        return losses.of_classes(loss, targets)


def between(loss: Loss, z: Tensor, targets: Tree) -> Tensor:
    """Return the second derivative of each sample's loss in its logits, (B, C, C).

    Args:
        loss: (logits, targets) -> (B,).
        z: logits, (B, C) float64.
        targets: of the samples.

    Returns:
        The matrices between the Jacobians.
    """
    if isinstance(loss, Weighed):
        inner, factors = targets
        weighed: Tensor = factors.to(z.dtype)[:, None, None] ** loss.power * between(loss.of, z, inner)
        return weighed
    if not losses.of_classes(loss, targets):
        return second_of_each(lambda z: loss(z, targets), z)
    p = z.softmax(1)
    # p_c (1 - p_c) from the sum of the other probabilities, because 1 - p_c loses its digits if a sample is fitted.
    others = p @ (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))
    middle = -p[:, :, None] * p[:, None]
    middle.diagonal(dim1=1, dim2=2).copy_(p * others)
    return middle


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A symmetric matrix that is a sum over samples."""

    name: str  # as `--operator` calls it
    symbol: str  # in formulas and figures
    about: str  # in help
    decays: bool  # weight decay adds its multiple of the identity
    bends: bool  # it contains second derivatives of the logits, which its factors do not have
    scales: bool  # with the losses: of c times the losses it is c times the matrix, so that samples can have weights
    factors: Factors | None  # of its part without second derivatives of the logits; None where there is no such part

    @property
    def decomposes(self) -> bool:
        """Whether its factors need the eigenvectors of a matrix (C, C) for each sample."""
        return self.factors is not None and self.factors.middle is not None

    @property
    def has_rows(self) -> bool:
        """Whether the matrix is determined by its factors."""
        return self.factors is not None and not self.bends

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """Multiply the sum over a batch by a vector in forward-over-reverse form, for tracing.

        Args:
            functions: logits and loss, which `torch.func` can transform.
            theta: the point.
            batch: inputs and targets.
            v: tensors of theta's shapes.

        Returns:
            The product in tensors of theta's shapes.
        """
        raise NotImplementedError

    def reverse(self, functions: Functions, theta: Tensors, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
        """Multiply the sum over a batch by several vectors with backward passes only, for any model.

        Args:
            functions: logits and loss.
            theta: the point, tensors that require a gradient.
            batch: inputs and targets.
            vs: vectors in tensors of theta's shapes.

        Returns:
            A product for each vector.
        """
        raise NotImplementedError

    def curved(
        self, functions: Functions, theta: Tensors, batch: Batch
    ) -> tuple[Callable[[Tensors], Tensor], Tensors] | None:
        """Return the function, t -> (B,), that `reverse` differentiates twice, and the point; None if there is none."""
        return None

    @property
    def remedy(self) -> str:
        """What the user can do if PyTorch has no second derivative, or computes a wrong one."""
        return first_only()


@dataclass(frozen=True, kw_only=True)
class SecondDerivative(Kind):
    """The second derivative at theta of a function with one value for each sample."""

    values: Callable[[Functions, Tensors, Batch, Gradient], Callable[[Tensors], Tensor]]
    """(functions, theta, batch, how to take a gradient) -> the function t -> (B,)."""

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """See `Kind.forward`."""
        values = self.values(functions, theta, batch, _by_transform)

        def summed(t: Tensors) -> Tensor:
            return values(t).sum()

        found: Tensors = jvp(grad(summed), (theta,), (v,))[1]
        return found

    def along(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensor:
        """Return v^T A_i v of each sample, (B,), by two forward tangents; arguments as for `forward`."""
        values = self.values(functions, theta, batch, _by_transform)

        def slopes(t: Tensors) -> Tensor:
            return _slope(values, t, v)

        with twice_forward():
            return _slope(slopes, theta, v)

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

    outputs: Callable[[Functions, Tensors, Tree, Tree], Tensor]  # (functions, theta, inputs, targets) -> (B, ...)

    @property
    def middle(self) -> Callable[[Losses], Loss] | None:
        """The function with M as its second derivative in the outputs; None if M is the identity."""
        return None if self.factors is None else self.factors.middle

    def forward(self, functions: Functions, theta: Tensors, batch: Batch, v: Tensors) -> Tensors:
        """See `Kind.forward`."""

        def outputs(t: Tensors) -> Tensor:
            return self.outputs(functions, t, *batch)

        value: Tensor
        tangent: Tensor
        value, tangent = jvp(outputs, (theta,), (v,))[:2]
        if self.middle is not None:
            loss = self.middle(functions)

            def summed(z: Tensor) -> Tensor:
                return functions.values(loss, z, batch[1]).sum()

            tangent = jvp(grad(summed), (value,), (tangent,))[1]
        pulled: Tensors = vjp(outputs, theta)[1](tangent)[0]
        return pulled

    def reverse(self, functions: Functions, theta: Tensors, batch: Batch, vs: list[Tensors]) -> list[Tensors]:
        """See `Kind.reverse`."""
        inputs, targets = batch

        def outputs(some: slice) -> Tensor:
            return self.outputs(functions, theta, trees.take(inputs, some), trees.take(targets, some))

        value, tangents = push(outputs, theta, vs)
        if self.middle is not None:
            z = value.detach().requires_grad_()
            values = functions.values(self.middle(functions), z, targets)
            found = second(values, (z,), [(t,) for t in tangents], self.remedy)
            tangents = [t for (t,) in found]
        return [pull(value, theta, t) for t in tangents]

    def curved(
        self, functions: Functions, theta: Tensors, batch: Batch
    ) -> tuple[Callable[[Tensors], Tensor], Tensors] | None:
        """See `Kind.curved`."""
        if self.middle is None:
            return None
        z, loss = self.outputs(functions, theta, *batch).detach(), self.middle(functions)
        return lambda t: functions.values(loss, t[0], batch[1]), (z,)


def _slope(function: Callable[[Tensors], Tensor], t: Tensors, v: Tensors) -> Tensor:
    found: Tensor = jvp(function, (t,), (v,))[1]
    return found


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
    inputs, targets = batch
    slopes = gradient(lambda z: functions.values(functions.loss, z, targets).sum(), functions.logits(theta, inputs))
    return lambda t: (slopes * functions.logits(t, inputs)).sum(1)


def _logits(functions: Functions, theta: Tensors, inputs: Tree, targets: Tree) -> Tensor:
    return functions.logits(theta, inputs)


HESSIAN = SecondDerivative(
    name="hessian",
    symbol="H",
    about="second derivatives of the loss",
    values=_losses,
    decays=True,
    bends=True,
    scales=True,
    factors=Factors(middle=loss_of),
)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        HESSIAN,
        Factored(
            name="ggn",
            symbol="G",
            about="the Gauss-Newton matrix, the Hessian of the loss for the network linearised in its parameters",
            outputs=_logits,
            decays=True,
            bends=False,
            scales=True,
            factors=Factors(middle=loss_of),
        ),
        SecondDerivative(
            name="residual",
            symbol="R",
            about="the Hessian minus the Gauss-Newton matrix, which is the curvature of the network itself",
            values=_along_slopes,
            decays=False,  # it is in H and in G
            bends=True,
            scales=True,
            factors=None,
        ),
        Factored(
            name="fisher",
            symbol="F",
            about="squared gradients for targets drawn from the model",
            outputs=_logits,
            decays=True,
            bends=False,
            scales=False,
            factors=Factors(middle=likelihood_of),
        ),
        Factored(
            name="empirical-fisher",
            symbol=r"\hat{F}",
            about="squared gradients for the targets of the data",
            outputs=lambda functions, theta, inputs, targets: functions.losses(theta, inputs, targets),
            decays=False,
            bends=False,
            scales=False,
            factors=Factors(),
        ),
    )
}
"""By name, in the order in which help lists them."""


def find(kind: str | Kind) -> Kind:
    """Return a kind of matrix by its name; a `Kind` is returned unchanged.

    Args:
        kind: a name of `KINDS`, or the caller's own kind.

    Returns:
        The kind.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(kind, Kind):
        return kind
    check_choice("operator", kind, KINDS)
    return KINDS[kind]
