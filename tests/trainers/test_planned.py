"""The costs of a training that are known before it begins."""

import pytest
from toys import CPU, recipe, smooth

from landscape.analyses import monitor
from trainers import data, planned


def plan(*, epoch=0, monitor=False, **options):
    chosen, loaded = data.load(recipe(model="toys:smooth", **options))
    return planned.plan(chosen, loaded, smooth(), CPU, epoch=epoch, monitor=monitor)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"epochs": 5, "statistics_every": 2, "warmup_epochs": 0}, 2),  # banked after epochs 2 and 4
        ({"epochs": 8}, 4),  # one for each of three classes, and one that is no longer needed
    ],
)
def test_the_bank_holds_a_snapshot_for_each_class_or_each_banked_epoch(options, files):
    size = sum(t.nbytes for t in smooth().state_dict().values())
    without, grouped = plan(**options), plan(**options, sharpness="gsa", groups=1)
    assert grouped.disk - without.disk == files * size


def test_only_steps_are_divided_among_processes():
    works = plan(sharpness="gsa", gkp=True, groups=1, epochs=8, cosines_every=1).works
    assert {work.what for work in works if work.divided} == {"steps", "steps with groups"}
    assert len(works) > 4


@pytest.mark.parametrize(("epoch", "times"), [(0, 3), (20, 1), (25, 1), (40, 0)])
def test_a_monitor_measures_before_the_first_epoch_and_after_every_twentieth(epoch, times):
    assert planned.MONITORED == monitor.EPOCHS
    without, found = (plan(epochs=45, epoch=epoch, monitor=own).works for own in (False, True))
    (work,) = [work for work in found if work.what not in {w.what for w in without}]
    assert work.times == times
    assert not work.divided
    assert work.prepare(1)().training_step.tolist() == [0]
