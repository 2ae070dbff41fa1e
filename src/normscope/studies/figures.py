"""Readings, a figure and a table that many studies have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from normscope.plots import Figure, Table, curves
from normscope.studies.evidence import Evidence, Floats, typical


def accuracy(evidence: Evidence, arm: str, name: str = "test_accuracy", **where: Any) -> Floats:
    """Return the accuracy at the end per seed; a run that diverged has none right."""
    return np.nan_to_num(evidence.last(name, arm=arm, **where), nan=0.0)


def apart(evidence: Evidence, one: str, other: str, **where: Any) -> Floats:
    """Return per seed the largest difference of two arms' losses over steps; infinite if one of them ended earlier."""
    first, second = (
        evidence.curves(evidence.select(probe="training", name="loss", arm=arm, **where)) for arm in (one, other)
    )
    found = []
    for seed in evidence.seeds:
        a, b = first[seed][1], second[seed][1]
        found.append(float(np.abs(a - b).max()) if len(a) == len(b) else np.inf)
    return np.array(found, dtype=np.float64)


def reached(evidence: Evidence, arm: str, target: float, **where: Any) -> tuple[Floats, int]:
    """Return the steps to a training accuracy, those that never get there counted as all, and how many these are."""
    return evidence.steps_to(target, horizon=int(evidence.settings["steps"]), arm=arm, **where)


def loss_figure(
    evidence: Evidence, arms: Mapping[str, str], title: str = "Training loss", slug: str = "loss", **where: Any
) -> Figure:
    """Draw the training loss of some arms; a study that draws several gives each a slug of its own."""
    return curves(
        evidence.select(probe="training", arm=list(arms), **where),
        y="loss",
        slug=slug,
        title=title,
        y_title="Loss of the step's batch",
        log=True,
        arms=list(arms),
        labels=dict(arms),
        caption=evidence.final_losses(arms, **where),
    )


def by_rate_figure(evidence: Evidence, arms: Mapping[str, str], name: str = "test_accuracy", **where: Any) -> Figure:
    """Draw a final accuracy over the learning rate."""
    rates = sorted(evidence.select(arm=list(arms), **where)["lr"].unique().to_list())
    said = "; ".join(
        f"{words}: " + ", ".join(f"{typical(accuracy(evidence, arm, name, lr=lr, **where))}" for lr in rates)
        for arm, words in arms.items()
    )
    return curves(
        evidence.select(probe="training", name=name, arm=list(arms), **where),
        y=name,
        x="lr",
        slug="by-rate",
        title="Accuracy at the end, by learning rate",
        x_title="Learning rate",
        y_title=name.replace("_", " ").capitalize(),
        log_x=True,
        arms=list(arms),
        labels=dict(arms),
        caption=f"At {', '.join(f'{lr:g}' for lr in rates)}: {said}; 0 where it diverged.",
    )


def ends_table(evidence: Evidence, arms: Mapping[str, str], **where: Any) -> Table:
    """Tabulate how some arms end."""
    rows = tuple(
        (
            words[:1].upper() + words[1:],
            typical(evidence.final("loss", arm=arm, **where)),
            typical(evidence.final("accuracy", arm=arm, **where)),
            typical(accuracy(evidence, arm, **where)),
            int(np.nansum(evidence.last("diverged", arm=arm, **where))),
        )
        for arm, words in arms.items()
    )
    columns = ("Arm", "Training loss", "Training accuracy", "Test accuracy", "Runs that diverged")
    return Table("How the arms end", columns, rows, f"Means over {len(evidence.seeds)} seeds; training: last 20 steps.")
