"""The loss of each part at a point: model, loss and data joined, in batches of a fixed order.

`objective` is the noun that every analysis takes, `loading` makes it from a checkpoint, `points` evaluates all parts
at any point, `snapshots` walks through checkpoints, `jobs` runs units of work, `provenance` says what was done. It
imports `data`, `networks`, `autodiff` and `results`. Begin with `objective`.
"""
