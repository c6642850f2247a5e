"""Tasks, inputs and models of many kinds, each with its loss written out by hand: the table of docs/tasks.md."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

N = 9


@dataclass(frozen=True)
class Case:
    """What a user gives, and the same as one batch with the loss of each of its samples."""

    model: nn.Module
    data: Any
    args: tuple[Any, ...]  # all samples, as the model is called
    targets: Any
    loss: Callable[[Any, Any], torch.Tensor]  # (output, targets) -> (N,)
    options: dict[str, Any] = field(default_factory=dict)  # of make_objective
    kwargs: dict[str, Any] = field(default_factory=dict)
    flat: Callable[[Any], torch.Tensor] = lambda out: out.reshape(len(out), -1)  # outputs -> (N, K)
    back: Callable[[torch.Tensor, Any], Any] = lambda z, out: z.reshape(out.shape)
    fisher: bool = True  # the loss is a likelihood with natural parameters: F = G
    ggn: bool = True
    traced: bool | None = True  # the fast path is taken; None where that depends on the library's version
    accuracy: bool = False


def seeded(make):
    with torch.random.fork_rng():
        torch.random.manual_seed(3)
        return make().double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high, *shape, seed=0):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def mlp(n_out, n_in=4):
    return seeded(lambda: nn.Sequential(nn.Linear(n_in, 5), nn.Tanh(), nn.Linear(5, n_out)))


class TwoBranches(nn.Module):
    def __init__(self, n_out):
        super().__init__()
        self.a, self.b = nn.Linear(4, n_out), nn.Linear(2, n_out)

    def forward(self, left, right=None):
        return self.a(left).tanh() * self.b(right)


class OneArgument(nn.Module):
    """Takes a nested dict as it is."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, batch):
        return self.a(batch["numbers"][0]).tanh() * self.b(batch["numbers"][1])


class Recurrent(nn.Module):
    """Embedding and GRU, and a row of logits for each token or for the last one."""

    def __init__(self, last=False):
        super().__init__()
        self.embedding, self.gru, self.head = nn.Embedding(6, 3), nn.GRU(3, 3, batch_first=True), nn.Linear(3, 4)
        self.last = last

    def forward(self, tokens, mask=None):
        states = self.gru(self.embedding(tokens))[0]
        if self.last:
            weights = mask.to(states.dtype)[..., None]
            states = (states * weights).sum(1) / weights.sum(1)
        return self.head(states)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Triplet(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, anchor, positive, negative):
        return self.net(anchor), self.net(positive), self.net(negative)


class OwnLoss(nn.Module):
    """Returns a mean over its batch, as language models do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x, labels):
        return {"loss": (self.net(x).tanh() - labels).square().mean(), "logits": self.net(x)}


def squared(out, y):
    return (out.reshape(len(y), -1) - y.reshape(len(y), -1)).pow(2).mean(1)


def cross_entropy_of_tokens(out, y):
    """By a loop, sample by sample: the mean over the tokens that are not ignored."""
    return torch.stack([F.cross_entropy(o, t, ignore_index=-100) for o, t in zip(out, y, strict=True)])


def cross_entropy_of_pixels(out, y):
    return torch.stack([F.cross_entropy(o[None], t[None], ignore_index=-100) for o, t in zip(out, y, strict=True)])


def margin(out, _):
    anchor, positive, negative = out
    return F.softplus((anchor - positive).pow(2).sum(1) - (anchor - negative).pow(2).sum(1))


def pseudo_huber(out, y):
    return ((1 + (out - y).pow(2)).sqrt() - 1).mean(1)


def ignoring(labels):
    """Leave some tokens out, more of some samples than of others."""
    labels = labels.clone()
    labels[0, :2], labels[3, 1:], labels[5, -1] = -100, -100, -100
    return labels


def padded(items):
    longest = max(len(tokens) for tokens, _ in items)
    tokens = torch.stack([F.pad(t, (0, longest - len(t))) for t, _ in items])
    mask = torch.stack([F.pad(torch.ones(len(t), dtype=torch.long), (0, longest - len(t))) for t, _ in items])
    return {"tokens": tokens, "mask": mask}, torch.tensor([label for _, label in items])


X, TWO, TOKENS = draw(N, 4), draw(N, 2, seed=1), whole(6, N, 3)
LONG = [(whole(6, 2 + i % 3, seed=i), i % 4) for i in range(N)]


def cases():
    """Make all cases."""
    y3, one, yes = draw(N, 3, seed=2), draw(N, seed=3), whole(2, N, 3, seed=4)
    images, areas = draw(N, 2, 4, 3, seed=5), ignoring(whole(3, N, 4, 3, seed=6))
    tags, shares = ignoring(whole(5, N, 3, seed=7)), draw(N, 3, seed=8).softmax(1)
    conv = seeded(lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1)))
    recurrent_tags = ignoring(whole(4, N, 3, seed=9))
    bce = F.binary_cross_entropy_with_logits
    three = tuple(draw(N, 4, seed=s) for s in (10, 11, 12))
    labels = torch.tensor([label for _, label in LONG])
    batch, _ = padded(LONG)
    return {
        "regression, several outputs": Case(mlp(3), (X, y3), (X,), y3, squared),
        "regression, one output": Case(
            mlp(1), DataLoader(list(zip(X, one, strict=True)), batch_size=4, shuffle=True), (X,), one, squared
        ),
        "binary": Case(
            mlp(1), (X, yes[:, 0]), (X,), yes[:, :1].double(),
            lambda out, y: bce(out, y, reduction="none")[:, 0], accuracy=True,
        ),
        "multi-label, dict": Case(
            seeded(lambda: TwoBranches(3)),
            [{"left": a, "right": b, "y": t} for a, b, t in zip(X, TWO, yes, strict=True)],
            (), yes.double(), lambda out, y: bce(out, y, reduction="none").mean(1),
            {"task": "multilabel"}, {"left": X, "right": TWO},
        ),
        "soft labels": Case(
            mlp(3), (X, shares), (X,), shares, lambda out, y: -(y * out.log_softmax(1)).sum(1),
            {"task": "classification"}, accuracy=True,
        ),
        "tokens, embedding and attention": Case(
            seeded(Attention), (TOKENS, tags), (TOKENS,), tags, cross_entropy_of_tokens, {"task": "tokens"},
        ),
        "tokens, embedding and GRU": Case(
            seeded(Recurrent), (TOKENS, recurrent_tags), (TOKENS,), recurrent_tags, cross_entropy_of_tokens,
            {"task": "tokens"}, traced=None,
        ),
        "pixels": Case(
            conv, (images, areas), (images,), areas, cross_entropy_of_pixels, {"task": "pixels"},
        ),
        "next token": Case(
            seeded(Attention), [{"tokens": t, "labels": t % 5} for t in TOKENS], (TOKENS,), TOKENS % 5,
            lambda out, y: cross_entropy_of_tokens(out[:, :-1], y[:, 1:]), {"task": "next-token"},
        ),
        "ragged sequences, collate_fn": Case(
            seeded(lambda: Recurrent(last=True)), DataLoader(LONG, batch_size=4, collate_fn=padded, drop_last=True),
            (batch["tokens"], batch["mask"]), labels, lambda out, y: F.cross_entropy(out, y, reduction="none"),
            traced=None, accuracy=True,
        ),
        "triplets, a tuple in and out": Case(
            seeded(Triplet), (three, torch.zeros(N)), three, torch.zeros(N), margin, {"loss": margin},
            flat=lambda out: torch.cat(out, 1), back=lambda z, out: torch.split(z, 2, 1), fisher=False,
        ),
        "nested dict as one argument": Case(
            seeded(OneArgument), ({"numbers": (X, TWO)}, y3[:, :2]), ({"numbers": (X, TWO)},), y3[:, :2], squared,
        ),
        "own function": Case(mlp(3), (X, y3), (X,), y3, pseudo_huber, {"loss": pseudo_huber}, fisher=False),
        "the model's own loss": Case(
            seeded(OwnLoss), (X, TWO), (X, TWO), TWO, lambda out, y: (out["logits"].tanh() - y).square().mean(1),
            {"loss": "model"}, fisher=False, ggn=False, traced=None,
        ),
    }  # fmt: skip
