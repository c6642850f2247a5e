"""The analyses, one file for each command, and what two of them share.

Each takes an objective (or checkpoints), runs its units by `objective.jobs` and returns a result. `directions`,
`convergence` and `overlaps` are shared by several. It imports `curvature`, `objective` and what is below. Begin with
`spectra`.
"""
