"""Independent witnesses: dense matrices by another route, in float64."""

import torch
from torch.func import hessian, jacrev

from landscape.autodiff.called import functional_call


def flat_function(objective, part, dtype=torch.float64):
    """Return theta (D,) -> mean loss of a part, and the point, built without the toolkit's own sums."""
    layout = objective.layout
    fixed = {n: t.to(dtype) if t.is_floating_point() else t for n, t in objective._fixed.items()}
    x, y = objective.samples.batch(objective.partition.indices(part), objective.device, dtype)
    model = objective.model.to(dtype)

    def outputs(theta):
        pieces = torch.split(theta, layout.sizes)
        named = {n: p.view(s) for n, p, s in zip(layout.names, pieces, layout.shapes, strict=True)}
        found = functional_call(model, {**fixed, **named}, (x,))
        return found if isinstance(found, torch.Tensor) else found[1]

    point = torch.cat([t.reshape(-1).to(dtype) for t in objective.theta])
    return outputs, (lambda theta: objective.loss(outputs(theta), y).mean()), point, y


def dense(objective, part, kind="hessian"):
    """Return the (D, D) float64 matrix of one part by torch.func on all of its samples at once."""
    outputs, loss, point, y = flat_function(objective, part)
    if kind == "hessian":
        return hessian(loss)(point)
    if kind == "residual":
        return dense(objective, part, "hessian") - dense(objective, part, "ggn")
    z = outputs(point)
    if kind == "empirical-fisher":
        g = jacrev(lambda t: objective.loss(outputs(t), y))(point)
        return g.T @ g / len(y)
    J = jacrev(outputs)(point)  # (n, C, D)
    if kind == "ggn":
        middle = torch.stack([
            hessian(lambda a, t=t: objective.loss(a[None], t[None])[0])(row) for row, t in zip(z, y, strict=True)
        ])
    else:
        p = z.softmax(1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncd,nce,nef->df", J, middle, J) / len(y)


def differences(objective, part, v, step=1e-5):
    """Return H v of one part by central differences of plain gradients, good to about 1e-9 in float64."""
    loss, point = flat_function(objective, part)[1:3]

    def gradient(theta):
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(theta), theta)[0]

    return (gradient(point + step * v) - gradient(point - step * v)) / (2 * step)


def dense_of_samples(objective, part, kind="hessian"):
    """Return the (n, D, D) float64 matrices of the single samples of one part: of the Hessian or the Gauss-Newton."""
    outputs, _, point, y = flat_function(objective, part)
    if kind == "hessian":
        return hessian(lambda t: objective.loss(outputs(t), y))(point)
    z, J = outputs(point), jacrev(outputs)(point)  # (n, C), (n, C, D)
    M = torch.stack([hessian(lambda one, k=k: objective.loss(one[None], y[[k]])[0])(z[k]) for k in range(len(z))])
    return J.mT @ M @ J
