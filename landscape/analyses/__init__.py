"""The analyses, one file for each command, and what two of them share.

Each takes an objective (or checkpoints), runs its units by `objective.jobs` and returns a result. Several share
`directions` and `convergence`; `overlap` belongs to the command `hessian`. It imports `curvature`, `objective` and
what is below. Begin with `spectrum`.
"""
