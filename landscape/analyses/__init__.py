"""The analyses: one file for each command, and shared code.

Each analysis accepts an objective (or checkpoints), runs its units of work with `objective.jobs`, and returns a result.
Several use `directions` and `convergence`; `overlap` belongs to the command `hessian`. The room imports `curvature`,
`objective` and the rooms below them. Begin with `spectrum`.
"""
