"""Spectra of matrices that are known, without a network: Lanczos in NumPy on a diagonal."""

import numpy as np

from landscape.results import Spectrum, quadrature


def lanczos(eigenvalues, probe, m):
    """Alpha and beta of m steps, fully re-orthogonalised; fewer where the Krylov space ends."""
    basis = [probe / np.linalg.norm(probe)]
    alpha, beta = [], []
    for _ in range(m):
        w = eigenvalues * basis[-1]
        alpha.append(w @ basis[-1])
        for _ in range(2):
            w -= np.array(basis).T @ (np.array(basis) @ w)
        beta.append(np.linalg.norm(w))
        if beta[-1] <= 1e-10 * max(1, np.abs(eigenvalues).max()):
            break
        basis.append(w / beta[-1])
    return alpha, beta


def spectrum_of(matrices, *, probes=3, steps=20, seed=0, **about):
    """The spectrum of diagonal matrices: a mapping of the part's name to its eigenvalues."""
    rng = np.random.default_rng(seed)
    parts, size = tuple(matrices), len(next(iter(matrices.values())))
    alpha, beta = (np.full((len(parts), probes, steps), np.nan) for _ in range(2))
    taken = np.zeros((len(parts), probes), dtype=int)
    traces = np.zeros((len(parts), probes))
    rows = []
    for p, values in enumerate(matrices.values()):
        solved = []
        for k in range(probes):
            z = rng.normal(size=size)
            a, b = lanczos(np.asarray(values, dtype=float), z, steps)
            taken[p, k] = len(a)
            alpha[p, k, : len(a)], beta[p, k, : len(a)] = a, b
            traces[p, k] = np.sum(values * z**2)
            solved.append(quadrature.ritz(alpha[p, k], beta[p, k], len(a)))
        best = max(solved, key=lambda r: r.values[-1])
        low = min(solved, key=lambda r: r.values[0])
        nodes, weights = quadrature.nodes_and_weights(alpha[p], beta[p], taken[p])
        mass = quadrature.mean_and_stderr(quadrature.negative_mass(nodes, weights, 1e-3))
        share = quadrature.negative_curvature(nodes, weights)
        trace = quadrature.mean_and_stderr(traces[p])
        rows.append({
            "lambda_max": best.values[-1],
            "lambda_max_residual": best.residuals[-1],
            "lambda_min": low.values[0],
            "lambda_min_residual": low.residuals[0],
            "converged": bool(best.residuals[-1] <= 1e-3 * abs(best.values[-1])),
            "trace": trace[0],
            "trace_stderr": trace[1],
            "negative_mass": mass[0],
            "negative_mass_stderr": mass[1],
            "negative_curvature": share[0],
            "negative_curvature_stderr": share[1],
            "saddle_ratio": 0.1,
            "saddle_ratio_stderr": 0.01,
            "loss": 0.5,
            "accuracy": 0.75,
        })
    counts = np.array([max(1, 5000 // (p + 1)) for p in range(len(parts))])
    fields = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    fields |= {
        "parts": parts,
        "n_samples": counts,
        "n_used": counts,
        "train_counts": counts,
        "ritz_values": fields["lambda_max"][:, None],
        "ritz_residuals": fields["lambda_max_residual"][:, None],
        "alpha": alpha,
        "beta": beta,
        "steps": taken,
        "probe_norm2": np.full(taken.shape, float(size)),
        "trace_samples": traces,
        "size": size,
        "operator": "hessian",
        "symbol": "H",
        "tol": 1e-3,
        "negative_tol": 1e-3,
        "provenance": {"loss": "ce", "split": "train", "params": "all trainable"},
    }
    return Spectrum(**fields | about)


def bulk(top, *, size=200, seed=0):
    """Eigenvalues as those of a network: most near zero, a few negative, some large, `top` the largest."""
    rng = np.random.default_rng(seed)
    outliers = top * np.geomspace(0.05, 1, 6)
    return np.concatenate([rng.normal(size=size - 6) * 0.01 * top, outliers])


def classes(n, **options):
    """A spectrum of n classes whose curvature grows from head to tail."""
    return spectrum_of({f"class {c}": bulk(2.0 * 10 ** (1.5 * c / max(1, n - 1)), seed=c) for c in range(n)}, **options)
