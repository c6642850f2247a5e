"""Baselines to analyse, and their parts: training loops that write checkpoints which say what they are.

    from trainers import recipe, train
    train(None, None, recipe("gsa-gkp", dataset="digits-lt"), out="runs/gsa-gkp")

`SAM` and `GSA` wrap any optimizer; `Memory` keeps the bank and makes the groups and GKP's penalty in a loop of one's
own; `losses` are those that only training needs. The only bond with `landscape` is the file: what a run leaves, every
analysis reads without further options.
"""

from trainers import losses
from trainers.gkp import GKP
from trainers.gsa import GSA
from trainers.methods import recipe
from trainers.preserve import Memory
from trainers.sam import SAM
from trainers.training import Trained, train

__all__ = ["GKP", "GSA", "SAM", "Memory", "Trained", "losses", "recipe", "train"]
