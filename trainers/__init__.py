"""Baselines for the analyses, and their components: training loops that write checkpoints which describe themselves.

    from trainers import recipe, train
    train(None, None, recipe("gsa-gkp", dataset="digits-lt"), out="runs/gsa-gkp")

`SAM` and `GSA` wrap any optimizer. `Memory` maintains the memory bank and makes the groups and GKP's penalty in your
own training loop. `losses` has the losses that only training needs. Every analysis of `landscape` reads the files of
a run without further options.
"""

from trainers import losses
from trainers.gkp import GKP
from trainers.gsa import GSA
from trainers.methods import recipe
from trainers.preserve import Memory
from trainers.sam import SAM
from trainers.training import Trained, train

__all__ = ["GKP", "GSA", "SAM", "Memory", "Trained", "losses", "recipe", "train"]
