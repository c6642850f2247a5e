"""Spectra that keep what belongs to single samples, with chosen numbers."""

import dataclasses

import numpy as np
from made import spectrum


def made(traces, uncertainty, /, **changed):
    """A spectrum of as many parts as there are arrays of traces."""
    width = max(map(len, traces))

    def padded(values):
        return np.array([np.append(v, np.full(width - len(v), np.nan)) for v in values])

    names = [f"part {p}" for p in range(len(traces))]
    fields = {
        "n_samples": np.array([len(t) for t in traces]),
        "sample_trace": padded(traces),
        "sample_uncertainty": padded(uncertainty),
        "sample_weight": padded([np.full(len(t), 1 / len(t)) for t in traces]),
        "sample_index": padded([np.arange(len(t), dtype=float) for t in traces]),
        "sample_chance": None,
        **{
            name: np.full((len(traces), width), np.nan)
            for name in ("sample_label", "sample_prediction", "sample_loss", "sample_curvature")
        },
    }
    about = {"data_sha256": "a"}
    return dataclasses.replace(spectrum(*names, lengths={"sample": width}), provenance=about, **(fields | changed))


def rows(rng, n, scale=1.0):
    """One row a sample, skewed in length, within a few dimensions of many."""
    lengths = np.sqrt(scale * rng.lognormal(sigma=1.0, size=n))
    return lengths[:, None] * rng.normal(size=(n, 12)) * np.array([1.0, 0.7, *[0.2] * 10])


def of_rows(*parts):
    """A spectrum whose parts have one row a sample, whose uncertainty is that row's largest entry."""
    together, sizes = np.vstack(parts), list(map(len, parts))
    return made(
        [(A**2).sum(axis=1) for A in parts],
        [np.abs(A).max(axis=1) for A in parts],
        gram=together @ together.T,
        gram_part=np.repeat(np.arange(len(parts)), sizes),
        gram_sample=np.concatenate([np.arange(n) for n in sizes]),
        gram_sign=np.ones(len(together)),
        eigenvalue_below=None,
    )
