"""The costs of a training that are known before it begins."""

import pytest
from toys import CPU, recipe, smooth

from trainers import data, planned


def plan(**options):
    chosen, loaded = data.load(recipe(model="toys:smooth", **options))
    return planned.plan(chosen, loaded, smooth(), CPU)


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
