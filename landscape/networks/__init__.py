"""Checkpoints and networks: models, weights, losses, classifiers, features.

`checkpoints` reads untrusted files, `weights` finds the state in them, `models` builds the architecture, `losses`
the loss per sample; `params` lays parameters out as one vector; `class_means` sums features by class; `matching/`
permutes channels of one network to another's. It imports `autodiff`. Begin with `checkpoints` and `models`.
"""
