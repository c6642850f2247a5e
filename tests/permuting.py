"""Networks without symmetries, and their channels moved by hand."""

import torch
from torch import nn


def made(make, seed=0):
    """A network in float64 in eval mode, of which no two numbers are equal, buffers included."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = make().double().eval()
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.2, 1).mul_(torch.randn_like(tensor).sign() if tensor.ndim > 1 else 1)
    return model


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def move(state, group, order):
    """Give each place of a group the channel of this number, all that belongs to it together."""
    for slot in group.slots:
        old = state[slot.name].clone()
        for place, channel in enumerate(order):
            for to, origin in zip(slot.positions[place], slot.positions[channel], strict=True):
                state[slot.name].select(slot.axis, int(to)).copy_(old.select(slot.axis, int(origin)))


class Net(nn.Module):
    """Layers under names, and a forward pass that may use them in any way."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)
