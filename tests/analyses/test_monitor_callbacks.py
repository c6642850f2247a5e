"""Callbacks of Lightning and of Hugging Face's Trainer hand the trainer's step and optimizer to a monitor."""

from types import SimpleNamespace

import pytest
import torch

from landscape.analyses import callbacks


class Watched:
    """A monitor that notes what it is told."""

    def __init__(self):
        self.optimizer, self.told = None, []

    def step(self, step, epoch=None):
        self.told.append((step, epoch))


OPTIMIZER = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.mark.slow  # the package takes its time to load
@pytest.mark.filterwarnings("ignore")
def test_lightning_tells_the_steps_of_the_optimizer_on_the_first_process():
    package = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    watched = Watched()
    made = callbacks.lightning(watched)
    assert isinstance(made, package.Callback)
    for rank_zero in (True, False):
        trainer = SimpleNamespace(is_global_zero=rank_zero, optimizers=[OPTIMIZER], global_step=3)
        made.on_train_start(trainer, None)
        made.on_train_batch_end(trainer, None, None, None, 0)
    assert watched.told == [(3, None)]
    assert watched.optimizer is OPTIMIZER


@pytest.mark.slow  # the package takes its time to load
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_tells_the_steps_and_epochs_on_the_first_process():
    package = pytest.importorskip("transformers", reason="transformers is not installed")
    watched = Watched()
    made = callbacks.transformers(watched)
    assert isinstance(made, package.TrainerCallback)
    for zero in (True, False):
        state = SimpleNamespace(is_world_process_zero=zero, global_step=5, epoch=0.5)
        made.on_train_begin(None, state, None, optimizer=OPTIMIZER)
        made.on_step_end(None, state, None, optimizer=OPTIMIZER)
    assert watched.told == [(5, 0.5)]
    assert watched.optimizer is OPTIMIZER
