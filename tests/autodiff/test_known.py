"""What is known of the code of a network: found by the objects that it was computed from, and by no others."""

import weakref

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
