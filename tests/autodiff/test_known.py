"""What is known of the code of a network: found by the objects that it was computed from, and by no others."""

import weakref

import pytest

from landscape.autodiff.known import Known


class Thing:
    pass


def test_a_value_is_found_by_its_key_and_its_objects():
    known, thing = Known(), Thing()
    known.put("a", 1, (thing,))
    assert known.get("a", (thing,)) == 1
    assert known.get("a", (Thing(),)) is None
    assert known.get("b", (thing,)) is None
    assert known.get("a") is None


def test_no_new_object_can_take_the_identity_of_one_that_is_stored():
    known, thing = Known(), Thing()
    known.put("a", 1, (thing,))
    alive = weakref.ref(thing)
    del thing
    assert alive() is not None


def test_a_test_is_made_until_it_passes():
    known, thing, made = Known(), Thing(), []

    def fail():
        made.append("failed")
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            known.once("a", (thing,), fail)
    for _ in range(2):
        known.once("a", (thing,), lambda: made.append("passed"))
    known.once("a", (Thing(),), lambda: made.append("of another"))
    assert made == ["failed", "failed", "passed", "of another"]
