"""Records of a comparison with known truths, to see what questions say of them."""

import math
import zlib
from collections.abc import Mapping

from kit.planted_evidence import Plant, jitter
from normscope.comparing import Pair, all_questions

ARMS = {"own": "with its norms", "none": "without norms"}
PAIR = Pair("own", "none", (ARMS["own"], ARMS["none"]), headline=True)


def compared(
    values, *, arms=ARMS, learn=None, seeds=5, steps=100, rates=(1.0,), spread=0.01, readings=None, diverged=()
):
    """Make the evidence of a comparison at the set-up's own learning rate; other rates hold losses alone.

    Args:
        values: ``{arm: {(probe, name): value}}``. A value is a number, or one for each site, ``{site: number}``; a
            number may be a list too: one for each reading, which are at the first step, in the middle and at the last
            (of ``"evaluation"`` at 0, in the middle and at ``steps``; of ``"gap"`` and ``"cost"`` give one number).
        arms: Words by arm.
        learn: The arms whose loss falls, from 2 to .5; all if None. That of the others stays at 2.
        seeds: How many.
        steps: Of a run.
        rates: Factors of the learning rate.
        spread: Standard deviation over seeds of the logarithm of every value; signs, zeros and infinities stay, and so
            do what is recorded of the model itself and the sizes of outputs.
        readings: The probes that were read, as in ``evidence.settings``; those with values if None.
        diverged: Arms that end in an infinite loss.
    """
    read = {probe for of_arm in values.values() for probe, _ in of_arm} - {"evaluation", "gap", "cost"}
    known = {probe: {"when": "some", "options": {}} for probe in sorted(read)} if readings is None else readings
    settings = {"steps": steps, "seeds": seeds, "rates": list(rates), "arms": dict(arms), "batches": 8}
    plant = Plant(settings | {"readings": known}, seeds)
    for arm in arms:
        for seed in plant.seeds:
            for rate in rates:
                _losses(plant, arm, seed, steps, learn is None or arm in learn, arm in diverged, rate=rate)
            for (probe, name), given in values.get(arm, {}).items():
                for site, series in (given if isinstance(given, Mapping) else {"": given}).items():
                    _series(plant, arm, seed, probe, name, site, series, steps, spread)
    return plant.evidence()


def _losses(plant, arm, seed, steps, learns, diverges, *, rate):
    low = 0.5 if learns else 2.0
    for step in range(steps):
        loss = low + (2.0 - low) * math.exp(-10 * step / steps)
        loss = 2.0 if step == 0 else loss * math.exp(jitter(seed, 0.001, step))
        plant.add(arm, seed, "loss", math.inf if diverges and step == steps - 1 else loss, step=step, rate=rate)
    plant.add(arm, seed, "diverged", diverges, step=steps, rate=rate)


def _series(plant, arm, seed, probe, name, site, series, steps, spread):
    end = steps if probe == "evaluation" else steps - 1
    several = isinstance(series, (list, tuple))
    at = (0, steps // 2, end) if several or probe not in ("gap", "cost") else (end,)
    numbers = series if several else [series] * len(at)
    for step, number in zip(at, numbers, strict=True):
        wobble = 0.0 if probe == "model" or name in ("output_width", "output_positions") else spread
        salt = zlib.crc32(repr((arm, probe, name, site, step)).encode())
        plant.add(
            arm, seed, name, number * math.exp(jitter(seed, wobble, salt)), step=step, probe=probe, site=site, rate=1.0
        )


def question(code, arms=ARMS):
    """The question of a code."""
    return next(each for each in all_questions(arms) if code == each.CODE)


def judged(code, evidence, pairs=(PAIR,)):
    """The verdict of a question: its headline, the other contrasts as parts."""
    return question(code, evidence.settings["arms"]).judge(evidence, pairs)
