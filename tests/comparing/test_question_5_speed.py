"""Question 5: an arm that trains faster, and arms of which none trains."""

from kit.planted_comparison import compared, judged


def test_where_only_the_first_arm_learns_it_trains_faster():
    assert judged("speed", compared({}, learn=["own"])).outcome.value == "holds"


def test_where_no_arm_learns_nothing_is_said_of_speed():
    found = judged("speed", compared({}, learn=[]))
    assert (found.outcome.value, found.why) == ("not measurable", "the loss falls in no arm")
