"""Checkpoints of the network of an objective, which its model is copied for."""

import torch
from torch import nn

import landscape as ls
from landscape.objective import snapshots


class Keeps(nn.Module):
    """Keeps its features, with the graph of the derivative that was taken last."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        self.features = self.first(x).tanh()
        return self.last(self.features)


def test_a_model_that_keeps_activations_can_be_copied_after_a_derivative(tmp_path):
    objective = ls.make_objective(Keeps(), (torch.randn(6, 4), torch.arange(6) % 3), device="cpu")
    other = Keeps()
    torch.save(other.state_dict(), tmp_path / "other.pt")
    ls.curvature_operator(objective, backend="reverse").matvec(torch.ones(1, 1, objective.layout.size))
    assert objective.model.features.grad_fn is not None
    (found,) = snapshots.find(objective, [str(tmp_path / "other.pt")])
    assert torch.equal(snapshots.network(objective, found).first.weight, other.first.weight)
