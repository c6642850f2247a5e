"""What happens to runs that are tested."""

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import pytest

from landscape.networks import class_means
from trainers.loop import Trainer


def nothing(trainer: Trainer) -> None:
    pass


@pytest.fixture
def epochs(monkeypatch):
    """Make a `with` block in which something is done to the trainer before or after each epoch."""

    @contextmanager
    def made(
        before: Callable[[Trainer], None] = lambda trainer: None,
        after: Callable[[Trainer], None] = lambda trainer: None,
    ) -> Generator[None, None, None]:
        run_epoch = Trainer.run_epoch

        def run(self, progress):
            before(self)
            row = run_epoch(self, progress)
            after(self)
            return row

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run_epoch", run)
            yield

    return made


@pytest.fixture
def qualities(monkeypatch):
    """Let the feature quality of the classes be, epoch by epoch, what a test says."""

    def given(rows):
        rows, measure = iter(rows), class_means.feature_quality

        def told(*arguments, **options):
            return dataclasses.replace(measure(*arguments, **options), quality=np.array(next(rows), dtype=float))

        monkeypatch.setattr(class_means, "feature_quality", told)

    return given
