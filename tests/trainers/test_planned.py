"""The costs of a training that are known before it begins."""

import pytest
from toys import CPU, begin, finish, recipe, smooth

from landscape.analyses import monitor
from landscape.autodiff import costs
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


@pytest.mark.parametrize(("options", "left"), [({}, 2), ({"seed": 1}, 3), ({"seed": 1, "overwrite": True}, 3)])
def test_the_rest_of_the_run_in_the_folder_is_planned_or_all_of_another(tmp_path, options, left, epochs):
    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with epochs(before=stop), pytest.raises(KeyboardInterrupt):
        finish(tmp_path, epochs=3)
    with costs.asking() as plans:
        begin(tmp_path, epochs=3, **options)
    assert [work.times for work in plans[0].works if work.what == "steps"] == [left * 4]
