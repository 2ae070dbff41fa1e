"""Planted pages of comparisons: answers made by hand, one of each word, three arms, four tiles."""

import dataclasses

from kit import report_pages
from kit.report_pages import log_ratio
from normscope import plots
from normscope.records import Condition, Estimate, Outcome, Premise, Verdict
from normscope.records.answers import headline
from normscope.report import AskedQuestion, ComparedPage, MadeArm, Section

ARMS = {"own": "with its norms", "none": "without norms", "rescaled": "without norms, weights rescaled"}
PAGE = {"Question": "What is asked.", "Method": "How it is measured: `loss` over steps.", "Threats": "Few steps."}
LEARNS = Premise("The network without norms learns (seen: its loss falls by 54 % (50 to 58) of the largest fall)", True)


def verdict(code, outcome, effect, amount, claim, finding, *, parts=(), **changed):
    told = {
        "endpoint": f"What {code} measures, without norms over with its norms",
        "margin": 0.4 if effect.scale == "log-ratio" else 0.05,
        "reason": "with its norms 1.27, without norms 1.53.",
        "margin_reason": "less is not seen in a figure",
        "premises": (LEARNS,),
        "conditions": (Condition("arms", "without norms against with its norms"), Condition("time", "at the start")),
        "amount": amount,
        "finding": finding,
        "p_value": 0.01,
    }
    return Verdict(code, claim, outcome, effect=effect, parts=tuple(parts), **(told | changed))


def growth():
    claim = "Gradients keep their size with depth with its norms."
    other = verdict("gradient-growth", Outcome.OPPOSITE, log_ratio(0.5, 0.4, 0.6), "2.0 times smaller (1.7 to 2.5)",
                    claim, "growth is 2.0 times smaller (1.7 to 2.5)", primary=False,
                    conditions=(Condition("arms", "without norms against with its norms"),
                                Condition("time", "after training")))  # fmt: skip
    layer = verdict("gradient-growth", Outcome.HOLDS, log_ratio(1.4, 1.3, 1.5), "1.40 times larger (1.3 to 1.5)",
                    "Gradients keep their size with depth with its norms better than with weights rescaled.",
                    "growth is 1.40 times larger (1.3 to 1.5)", primary=False)  # fmt: skip
    return verdict("gradient-growth", Outcome.HOLDS, log_ratio(1.83, 1.52, 2.2), "1.83 times larger (1.52 to 2.20)",
                   claim, "gradients keep 1.83 times more (1.52 to 2.20) of their size a layer",
                   parts=(other, layer))  # fmt: skip


def verdicts():
    difference = Estimate(0.172, 0.15, 0.19, 0.95, 5, "paired t", "difference", "%")
    return {
        "gradient-growth": growth(),
        "smoothness": verdict(
            "smoothness", Outcome.OPPOSITE, log_ratio(0.4, 0.3, 0.5), "2.5 times wider (2.0 to 3.3)",
            "The loss is smoother along the gradient with its norms.",
            "the range of the loss along the gradient is 2.5 times wider (2.0 to 3.3)",
        ),
        "shift": verdict(
            "shift", Outcome.NOT_MEASURABLE, log_ratio(1.1, 0.3, 4.0), "1.10 times (0.3 to 4.0)",
            "The gradient shifts less with its norms.", "", p_value=None,
            premises=(dataclasses.replace(LEARNS, met=False),), why=f"a premise is not met: {LEARNS.words}",
        ),
        "speed": verdict(
            "speed", Outcome.HOLDS, difference, "17.2 % lower (15 to 19)", "The network trains faster with its norms.",
            "the training loss is 17.2 % lower (15 to 19) with its norms than without norms [mean over all steps]",
        ),
        "flatness": verdict(
            "flatness", Outcome.UNCLEAR, log_ratio(1.2, 0.8, 1.9), "1.20 times (0.8 to 1.9)",
            "The minimum is flatter with its norms.", "the largest eigenvalue is 1.20 times smaller (0.8 to 1.9)",
            why="about 40 seeds would decide, if they spread as these do",
        ),
        "dead-units": verdict(
            "dead-units", Outcome.NO_EFFECT, Estimate(0.001, -0.01, 0.012, 0.95, 5, "paired t", "difference", "points"),
            "+0.1 points (-1.0 to 1.2)", "Fewer units are dead with its norms.",
            "0.1 points (-1.0 to 1.2) fewer units are dead",
        ),
    }  # fmt: skip


TILES = {"gradient-growth": "Gradient growth", "smoothness": "Smoothness", "shift": "Shift", "speed": "Speed"}
ASKS = {
    "gradient-growth": "Do gradients vanish or explode with depth with its norms, and without norms?",
    "smoothness": "Is the loss smoother along the gradient with its norms than without norms?",
    "shift": "Does the gradient of a layer shift less with its norms than without norms?",
    "speed": "Does the network train faster with its norms than without norms?",
    "flatness": "Is the minimum flatter with its norms than without norms?",
    "dead-units": "Are fewer units dead with its norms than without norms?",
}
NUMBERS = {"own": "1.27", "none": "1.53", "rescaled": ""}


def figures():
    data = report_pages.frame(3, 100, every=10, layers=4, arms=["none", "bn"])
    own = {"arms": ["none", "bn"], "labels": {"none": "without norms", "bn": "with its norms"}}
    return (
        plots.curves(data, y="loss", title="Training loss", **own),
        plots.by_depth(data, y="norm", title="Gradient norm by depth", **own),
    )


def asked(described=False, hostile=""):
    drawn = figures()
    table = plots.Table("Loss by step", ("arm", "first", "last"), (("with its norms", 2.3, 0.4),), "Over 5 seeds.")
    found = []
    for number, (code, judged) in enumerate(verdicts().items(), start=1):
        if described:
            judged = too_few_seeds(judged)
        section = Section(code, ASKS[code] + hostile, judged.claim, PAGE, (judged,), drawn, (table,), kind="question",
                          described=described)  # fmt: skip
        sentence = f"Described, not judged (1 seed): {judged.finding}." if described else headline(judged)
        found.append(AskedQuestion(section, sentence + hostile, number, TILES.get(code, "") + hostile, NUMBERS))
    return found


def too_few_seeds(judged):
    """Return a verdict as one seed gives it."""
    amount = f"{judged.amount.rpartition(' (')[0]} (no bound)"
    effect = dataclasses.replace(judged.effect, n=1, low=-report_pages.INF, high=report_pages.INF)
    changed = {"why": "1 seed has a number, at least 3 are needed", "p_value": None, "amount": amount, "effect": effect}
    parts = tuple(map(too_few_seeds, judged.parts))
    return dataclasses.replace(judged, outcome=Outcome.NOT_MEASURABLE, parts=parts, **changed)


def page(described=False, hostile="", **changed):
    long = tuple(f"changed features.{i}.norm: BatchNorm2d -> nothing" for i in range(0, 40, 3))
    arms = (
        MadeArm("own", ARMS["own"] + hostile, "The network as it is."),
        MadeArm("none", ARMS["none"] + hostile,
                f"14 norms changed. At the start its function is different.{hostile}", long),
        MadeArm("rescaled", ARMS["rescaled"], "14 norms changed.", ("note 12 parameters of norms dropped" + hostile,)),
    )  # fmt: skip
    told = {
        "title": "Your network with its norms, and without norms, without norms, weights rescaled" + hostile,
        "lede": "3 arms from the same first weights and on the same batches, 200 training steps each, 5 seeds.",
        "asked": asked(described, hostile),
        "arms": arms,
        "pair": ("own", "none"),
        "notes": ("the budget left out the probe `curvature`" + hostile,
                  "without its norms this network does not learn: gradients fall to 0.06 a layer"),
        "said": ("conditioning: 300 of 512 units were read" + hostile, "landscape: a step was not finite"),
        "command": "normscope compare train.py:make_case --arms own,none,rescaled --seeds 5" + hostile,
        "provenance": report_pages.PROVENANCE,
        "seconds": 512.3,
    }  # fmt: skip
    return ComparedPage(**(told | changed))
