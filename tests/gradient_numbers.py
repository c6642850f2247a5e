"""The numbers of `landscape gradients`, computed from the gradients themselves."""

import numpy as np

LAYERS = ("layer_norm", "layer_cosine", "layer_contribution", "layer_whole_norm")
NUMBERS = (
    "norm", "cosine", "projected", "specific", "radius", "contribution", "between", "conflict", "whole_norm", *LAYERS,
)  # fmt: skip


def layers_of(objective):
    """Where the parameters that each module itself holds stand in a flat vector."""
    layout, found = objective.layout, {}
    place = dict(zip(layout.names, np.split(np.arange(layout.size), np.cumsum(layout.sizes)[:-1]), strict=True))
    for name, module in objective.model.named_modules():
        own = [place[n] for k, _ in module.named_parameters(recurse=False) if (n := f"{name}.{k}".lstrip(".")) in place]
        if own:
            found[name] = np.concatenate(own)
    return found


def numbers(rows, shares, counts, theta_norm, layers):
    """What the result claims, from the vectors themselves, as equations 12 and 13 are written."""
    g = shares @ rows
    parts = [(rows[:, at], g[at]) for at in layers.values()]
    d = len(g)
    h = np.stack([row - (row @ g) / (g @ g) * g for row in rows])
    sizes = [np.linalg.norm(row) for row in rows]
    rho = [
        np.sqrt(theta_norm / (2 * np.linalg.norm(h_p))) * d ** (-1 / 4) * (n - 1) ** (-1 / 4) if n > 1 else np.nan
        for h_p, n in zip(h, counts, strict=True)
    ]
    between = np.array([
        [a @ b / (p * q) for b, q in zip(rows, sizes, strict=True)] for a, p in zip(rows, sizes, strict=True)
    ])
    return {
        "norm": sizes,
        "cosine": [row @ g / (p * np.linalg.norm(g)) for row, p in zip(rows, sizes, strict=True)],
        "projected": rows @ g / np.linalg.norm(g),
        "specific": np.linalg.norm(h, axis=1),
        "radius": rho,
        "contribution": shares * (rows @ g) / (g @ g),
        "between": between,
        "conflict": between < 0,
        "whole_norm": np.linalg.norm(g),
        "layer_norm": [np.linalg.norm(own, axis=1) for own, _ in parts],
        "layer_cosine": [own @ h / (np.linalg.norm(own, axis=1) * np.linalg.norm(h)) for own, h in parts],
        "layer_contribution": [shares * (own @ h) / (h @ h) for own, h in parts],
        "layer_whole_norm": [np.linalg.norm(h) for _, h in parts],
    }


def agree(found, expected, *, rel=1e-7, names=NUMBERS):
    """All numbers of one point, relative to the largest of their kind; roots of differences have half the digits."""
    for name in names:
        value = np.asarray(expected[name], dtype=float)
        np.testing.assert_allclose(
            getattr(found, name)[0], value, rtol=rel, atol=rel * np.nanmax(np.abs(value)), err_msg=name
        )


def weights(objective):
    return {n: t.clone() for n, t in objective.model.state_dict().items()}
