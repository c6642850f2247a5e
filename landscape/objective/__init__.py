"""The loss of each part at a point: model, loss and data together, in batches of a fixed order.

`objective` defines the argument of every analysis; `loading` makes it from a checkpoint, `points` evaluates all parts
at any point, `snapshots` loads the checkpoints of a run, `jobs` runs units of work, `provenance` records what was done.
The room imports `data`, `networks`, `autodiff` and `results`. Begin with `objective`.
"""
