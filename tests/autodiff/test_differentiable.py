"""Operations that are run in another way where derivatives are taken."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.autodiff.differentiable import differentiable_attention

CUDNN = torch.backends.cudnn


class Watch(TorchDispatchMode):
    """Notes each operation, and whether cuDNN is on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append((function, CUDNN.enabled))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, lambda *s: nn.RNN(*s, nonlinearity="relu")], ids=range(4))
@pytest.mark.parametrize("enabled", [True, False])
def test_recurrent_networks_alone_run_without_cudnn_and_the_setting_comes_back(kind, enabled):
    """cuDNN's have no second derivative; which way is taken backward is decided in the forward pass."""
    recurrent, other, x = kind(3, 2), nn.Linear(3, 2), torch.ones(4, 1, 3)
    with CUDNN.flags(enabled=enabled):
        with differentiable_attention(), Watch() as watch:
            y = recurrent(x)[0]
            inside, watch.seen = watch.seen, []
            other(x)
        assert CUDNN.enabled == enabled
    zeros = torch.ops.aten.zeros.default  # the first hidden state, which the module makes
    of_function = [seen for function, seen in inside if function is not zeros]
    assert len(of_function) > 3
    assert not any(of_function)
    assert watch.seen
    assert all(seen == enabled for _, seen in watch.seen)
    (slope,) = torch.autograd.grad(y.sum(), recurrent.weight_ih_l0, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), recurrent.weight_hh_l0, allow_unused=True)


def test_a_recurrent_network_that_fails_gives_cudnn_back():
    with differentiable_attention(), pytest.raises(RuntimeError):
        nn.LSTM(3, 2)(torch.ones(4, 1, 5))
    assert CUDNN.enabled
