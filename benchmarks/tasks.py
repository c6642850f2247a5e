"""Our products beside those of PyHessian and curvlinops, for the tasks and inputs that they can do.

    python benchmarks/tasks.py

Printed is the largest difference of three products, as a share of the largest entry, in float64: regression with
several outputs in batches of unequal size, and regression on a dict.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import landscape as ls

N, BATCH = 90, 32


class OnDict(nn.Module):
    """Two branches, multiplied; takes the dict as it is, as curvlinops calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(2, 5)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return (B, 5)."""
        return self.left(batch["left"]).tanh() * self.right(batch["right"])


def pyhessian(model: nn.Module, batches: list[Any], v: Tensor) -> Tensor:
    """Return H v by PyHessian."""
    from pyhessian import hessian

    theirs = hessian(model, nn.MSELoss(), dataloader=batches, cuda=False)
    shapes = [p.shape for p in model.parameters()]
    pieces = v.split([shape.numel() for shape in shapes])
    found = theirs.dataloader_hv_product([piece.reshape(s) for piece, s in zip(pieces, shapes, strict=True)])[1]
    return torch.cat([piece.reshape(-1) for piece in found])


def curvlinops(name: str) -> Callable[[nn.Module, list[Any], Tensor], Tensor]:
    """Return a product of curvlinops, by the name of its operator."""
    import curvlinops as package

    def product(model: nn.Module, batches: list[Any], v: Tensor) -> Tensor:
        sizes = (lambda batch: len(batch["left"])) if isinstance(batches[0][0], dict) else None
        return getattr(package, name)(model, nn.MSELoss(), list(model.parameters()), batches, batch_size_fn=sizes) @ v

    return product


def rows() -> Iterator[tuple[str, str, str, float]]:
    """Yield input, matrix, peer and difference."""
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, two, y = numbers(N, 4), numbers(N, 2), numbers(N, 5)
    mlp = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    hessian, ggn = curvlinops("HessianLinearOperator"), curvlinops("GGNLinearOperator")
    by_curvlinops = (("hessian", "curvlinops", hessian), ("ggn", "curvlinops", ggn))
    cases = (
        ("tensor", mlp, x, (("hessian", "PyHessian", pyhessian), *by_curvlinops)),
        ("dict", OnDict().double(), {"left": x, "right": two}, by_curvlinops),
    )
    for name, model, inputs, peers in cases:
        objective = ls.make_objective(model, (inputs, y), dtype="float64", batch_size=BATCH, device="cpu")
        batches = [(_some(inputs, i), y[i : i + BATCH]) for i in range(0, N, BATCH)]
        for kind, peer, product in peers:
            operator, worst = ls.curvature_operator(objective, kind), 0.0
            for _ in range(3):
                v = numbers(objective.layout.size)
                ours, theirs = operator.matvec(v[None, None])[0, 0], product(model, batches, v)
                worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
            yield name, kind, peer, worst


def _some(inputs: Any, begin: int) -> Any:
    if isinstance(inputs, dict):
        return {name: values[begin : begin + BATCH] for name, values in inputs.items()}
    return inputs[begin : begin + BATCH]


if __name__ == "__main__":
    print("| input | matrix | beside | largest difference |\n|---|---|---|---|")
    for cells in rows():
        print("| {} | {} | {} | {:.1e} |".format(*cells))
