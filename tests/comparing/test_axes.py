"""Pictures of a comparison say what is drawn upward and across; what is drawn over steps says it with its unit."""

import pytest

from kit.planted_comparison import PAIR, compared, question

VALUES = {
    arm: {
        ("evaluation", "loss"): [2.0, 1.0, level],
        ("evaluation", "accuracy"): [0.1, 0.5, 0.9],
        ("gap", "train_loss"): level,
    }
    for arm, level in (("own", 0.5), ("none", 0.7))
}


def titles(figure):
    """What stands above a picture for its vertical axis."""
    return figure.spec["usermeta"]["normscope"]["subtitle"]


@pytest.mark.parametrize(
    ("code", "slug", "said"),
    [
        ("speed", "training-loss", "Training loss, in the units of the set-up's loss"),
        ("speed", "evaluation-loss", "Evaluation loss, in the units of the set-up's loss"),
        ("generalisation", "evaluation-loss", "Loss on evaluation data, in the units of the set-up's loss"),
        ("generalisation", "evaluation-accuracy", "Accuracy on evaluation data, as a share"),
    ],
)
def test_axes_name_what_is_drawn_and_its_unit(code, slug, said):
    figures = {figure.slug: figure for figure in question(code).figures(compared(VALUES), [PAIR])}
    assert titles(figures[slug]).startswith(said)
