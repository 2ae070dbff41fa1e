"""The backward pass of layer norm and of RMS norm: the terms of batch norm, over features."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from torch import nn

from normscope.plots import Figure, Table, versus_theory
from normscope.records import Cell, Record
from normscope.studies import Arm, Contrast, Evidence, Quantity, mean, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.evidence import Floats
from normscope.studies.figures import theory_table
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import first_batch, fit, recorder
from normscope.studies.lab.feature_terms import errors_in_network, errors_of_tokens, expected_error, random_tokens
from normscope.studies.lab.train import loss_fn
from normscope.studies.transformer_training import AbstractTransformerTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

EXACT = 1e-9
PROBE = "token_terms"
RANDOM, NETWORK = "random tokens", "a transformer"
#: Behind the name of what is measured on few windows.
FEW = "_few"
#: How far the error of a random gradient may lie from theory, and that of an arriving gradient.
NEAR, ALIKE = math.log(1.05), math.log(1.2)
#: torch's eps.
EPS = 1e-5
#: What is said of the gradients of gain and shift, by the name of the error's record.
SUMS = {
    "gamma_error": "The gradient of the gain is the output gradient times the normalized values, summed over tokens.",
    "beta_error": "The gradient of the shift is the output gradient, summed over tokens.",
}


class LnBackwardTerms(AbstractTransformerTraining):
    r"""The gradient through layer norm has the three terms of batch norm, over the features of a token.

    ## Claim
    The input gradient of layer norm is
    $r\,(h - \langle h\rangle - \hat x \langle h \hat x\rangle)$ with $h = \gamma g_y$, $r = 1/\sigma$ and means over
    the features of one token: the rescaling, a term through the mean and a term through the variance, as in batch norm
    with features for samples (derived; Xu et al. 2019 cut the last two off). RMS norm takes no mean, so it has two.

    ## Method
    In float64, all tokens together: automatic differentiation through elementary operations against the terms, and
    against central differences. First on random tokens with a random gradient, of 8 to 512 features, means and sizes
    of their own and gains that differ; then in a pre-norm transformer on text, on the gradients that arrive at each
    norm before training and after it. The formulas are identities: exact (to 1e-9) or false. The headline is the sum of
    the three terms. Claims of their own: RMS norm's two terms; the formula that keeps the rescaling alone; the formula
    of batch norm with the gain in front of the means; the sums over tokens for gain and shift; the error of the
    rescaling against theory; whether that error falls in large batches, as it does for batch norm.

    ## Prediction
    The three terms are a projection: they take the parts of h along the ones and along $\hat x$ away, two of d
    directions. A gradient that knows nothing of the token has a share 2/d of its energy there, so the rescaling
    alone is off by $E = \sqrt{2/(d-2)}$ of the exact length (.577, .258, .126 and .063 at d = 8, 32, 128 and 512), RMS
    norm, which takes one direction away, by $\sqrt{1/(d-1)}$. Gains drop out of both, as h and not $g_y$ is projected.
    No number of tokens makes E smaller. Gains that differ make batch norm's formula false.

    ## Threats
    The theory needs a gradient without a preferred direction; those that arrive in a network have one, so their error
    is another, and it is a property of that network and time. eps is torch's, which beside a variance of
    about one changes E by less than 1e-4.
    """

    CODE = "ln-backward-terms"
    CARD = 33
    TOPIC = "gradient"
    EXTENSION = True
    SOURCES = (
        "Derived here",
        "Ba, Kiros & Hinton 2016 (arXiv:1607.06450), the layer",
        "Zhang & Sennrich 2019 (arXiv:1910.07467), RMS norm",
        "Xu et al. 2019 (arXiv:1911.07013), derivatives of mean and variance",
    )
    CLAIM = "The input gradient of layer norm has batch norm's three terms, with means over features."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Largest relative error of the three terms, all tokens and norms, float64"
    MARGIN = ALIKE
    MARGIN_REASON = "a fifth of an error is within what the place in the network makes of it"
    ARMS = {"layer": Arm("layer norm", token_norms.layer()), "rms": Arm("RMS norm", token_norms.rms())}
    CONDITIONS = {"task": "{}", "width": "{} features", "step": "after {} steps", "windows": "{} windows"}
    PRESETS = presets(
        quick={
            "widths": [8, 32, 128, 512],
            "tokens": 4000,
            "network": {"width": 64, "blocks": 2, "heads": 4, "init": "xavier"},
            "windows": [2, 64],
            "steps": 60,
            "batch": 8,
            "lr": 0.003,
        },
        full={
            "widths": [8, 32, 128, 512, 1024],
            "network": {"width": 128, "blocks": 12, "heads": 4, "init": "xavier"},
            "steps": 2000,
            "batch": 32,
            "lr": 0.001,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield a cell for random tokens of every width, and one for a network."""
        for arm in self.ARMS:
            for width in settings["widths"]:
                yield arm, {"task": RANDOM, "width": width}
            yield arm, {"task": NETWORK, "width": settings["network"]["width"]}

    def trains(self, cell: Cell) -> bool:
        """Cells measure, and some of them train in between."""
        return False

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterator[Record]:
        """Measure on random tokens, or in a network before training and after it."""
        if cell.point["task"] == RANDOM:
            tokens = random_tokens(cell.seed, cell.settings["tokens"], int(cell.point["width"]))
            record = recorder(cell, PROBE)
            for name, value in errors_of_tokens(*tokens, EPS, cell.arm).items():
                yield record(name, value, 0, "random tokens")
            return
        split, model = self.split(cell, data, device), self.network(cell, data, device)
        yield from self._measure(cell, 0, model, split)
        yield from fit(model, split, cell, **self.options(cell))
        yield from self._measure(cell, cell.settings["steps"], model, split)

    def _measure(self, cell: Cell, step: int, model: nn.Module, split: "Split") -> Iterator[Record]:
        """Measure on the gradients that arrive at each norm, for many windows, and the rescaling for few windows."""
        record, twin = recorder(cell, PROBE), copy.deepcopy(model).double()
        few, many = sorted(cell.settings["windows"])
        for count in (many, few):
            x, y = first_batch(split, cell, count)
            batch = (x.double() if x.is_floating_point() else x, y)
            for site, found in errors_in_network(twin, partial(loss_fn, batch=batch), cell.arm):
                for name, value in found.items() if count == many else [(f"error{FEW}", found["error"])]:
                    yield record(name, value, step, site)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the sum of the three terms; other formulas, theory, real gradients and large batches are own claims."""
        everywhere = "{effect} over all tokens, norms and times"
        yield _identity("full_error", "layer", "three terms", self.CLAIM, everywhere)
        two = "The input gradient of RMS norm has two of the terms, without that through the mean."
        yield _identity("full_error", "rms", "two terms", two, everywhere)
        for arm, words in self.ARMS.items():
            missed = _typical(ERROR(evidence, arm=arm, task=NETWORK))
            says = f"at the norms of a transformer it misses {missed} of the gradient's length on average ({{effect}})"
            claim = "The input gradient is the output gradient times gain over sigma."
            yield _identity("error", arm, f"rescaling alone, {words}", claim, says, NETWORK)
        says = "where gains differ, the gradient is off ({effect} of its length)"
        claim = "Batch norm's formula, with the gain in front of the means, is layer norm's too."
        yield _identity("outer_error", "layer", "gain in front", claim, says, RANDOM)
        for name, claim in SUMS.items():
            yield _identity(name, "layer", name.removesuffix("_error"), claim, everywhere)
        yield from self._theory(evidence.settings)
        yield from self._arriving(evidence.settings)

    def _theory(self, settings: Mapping[str, Any]) -> Iterator[Contrast]:
        """Yield the error of the rescaling on random gradients against theory."""
        for arm, words in self.ARMS.items():
            for width in settings["widths"]:
                yield Contrast(
                    ERROR,
                    arm,
                    expected_error(arm, width),
                    at={"task": RANDOM, "width": width},
                    scale="log-ratio",
                    equal_within=NEAR,
                    margin_reason="4000 tokens leave an error of 1 to 2 % by chance",
                    labels=("", "theory"),
                    name=f"theory, {arm}, {width}",
                    claim="For a random gradient the rescaling alone is off by as much as theory says.",
                    says=f"with {words} the error is {{effect}} than the {expected_error(arm, width):.3g} of theory",
                    comparative=("larger", "smaller"),
                )

    def _arriving(self, settings: Mapping[str, Any]) -> Iterator[Contrast]:
        """Yield the same on gradients that arrive in a network, and whether large batches make it smaller."""
        few, many = sorted(settings["windows"])
        width = settings["network"]["width"]
        for arm, words in self.ARMS.items():
            for step in (0, settings["steps"]):
                yield Contrast(
                    ERROR,
                    arm,
                    expected_error(arm, width),
                    at={"task": NETWORK, "step": step},
                    scale="log-ratio",
                    equal_within=ALIKE,
                    labels=("", "theory"),
                    name=f"arriving, {arm}, {'trained' if step else 'start'}",
                    claim="The gradients that arrive at a norm of a transformer know as little of the token as a "
                    "random one.",
                    says=f"with {words} the error is {{effect}} than the {expected_error(arm, width):.3g} of a random "
                    "gradient",
                    comparative=("larger", "smaller"),
                )
            yield Contrast(
                ERROR,
                {"arm": arm, "windows": many},
                {"arm": arm, "windows": few},
                at={"task": NETWORK, "step": 0},
                scale="log-ratio",
                equal_within=ALIKE,
                name=f"large batches, {arm}",
                claim="What the rescaling leaves out does not depend on the number of tokens.",
                says=f"with {words} the error is {{effect}} on {many} windows of text than on {few}",
                comparative=("larger", "smaller"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the error of the rescaling against the number of features, with theory."""
        widths, step = evidence.settings["widths"], evidence.settings["steps"]
        shown = evidence.select(probe=PROBE, name="error", task=RANDOM).with_columns(
            pl.col("arm").replace_strict(self.wording.arms, default="").alias("norm")
        )
        theory = pl.DataFrame(
            [{"width": width, "value": expected_error(arm, width), "norm": f"{self.ARMS[arm]}, theory"}
             for arm in self.ARMS for width in widths]
        )  # fmt: skip
        width = evidence.settings["network"]["width"]
        said = "; ".join(
            f"{words} {_typical(ERROR(evidence, arm=arm, task=NETWORK, step=0))} at the start and "
            f"{_typical(ERROR(evidence, arm=arm, task=NETWORK, step=step))} after {step} steps, where "
            f"theory says {_percent(expected_error(arm, width))}"
            for arm, words in self.ARMS.items()
        )
        return [
            versus_theory(
                shown.select("width", "seed", "value", "norm"),
                theory,
                x="width",
                by="norm",
                slug="error-by-width",
                title="What the rescaling alone misses, against the number of features",
                x_title="Features d",
                y_title="Relative error of the input gradient, random gradient",
                log=True,
                log_x=True,
                caption=f"In a transformer of {width} features, on the gradients that arrive: {said}.",
            )
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate random gradients against theory, and the error and its shares in the network, norm by norm."""
        settings, names = evidence.settings, ("error", "cosine", "mean_share", "variance_share")
        sites = sorted(evidence.select(probe=PROBE, name="error", task=NETWORK)["site"].unique().to_list())
        return [
            theory_table(
                (f"error, {self.ARMS[arm]}, {width} features", ERROR(evidence, arm=arm, task=RANDOM, width=width),
                 expected_error(arm, width))
                for arm in self.ARMS for width in settings["widths"]
            ),
            self.grid_table(
                [mean(name, probe=PROBE) for name in names],
                evidence,
                rows={"arm": list(self.ARMS), "step": [0, settings["steps"]], "site": sites},
                at={"task": NETWORK},
                title="The rescaling alone against the exact gradient, at each norm of a transformer",
                caption="Shares are those of the rescaled gradient's energy that the other terms remove.",
                heads={"site": "Norm", "step": "Step"},
            ),
        ]  # fmt: skip


def _identity(name: str, arm: str, short: str, claim: str, says: str, task: str = "") -> Contrast:
    """Return the contrast that says whether a formula is exact, by the largest error of a seed; of a task if named."""

    def largest(evidence: Evidence, **where: Any) -> Floats:
        return evidence.per_seed(evidence.select(probe=PROBE, name=name, **where), pl.col("value").max())

    words, at = f"largest {name.replace('_', ' ')}", {"task": task} if task else {}
    quantity = Quantity(words, largest, unit="%" if task else "")
    return Contrast(quantity, arm, at=at, name=short, claim=claim, says=says, exact_within=EXACT)


def _typical(values: Floats) -> str:
    """Write the mean over seeds that have a number, in percent."""
    kept = values[np.isfinite(values)]
    return _percent(kept.mean()) if len(kept) else "an unknown share"


def _percent(value: float) -> str:
    return f"{100 * float(value):.3g} %"


def _error(evidence: Evidence, windows: int | None = None, **where: Any) -> Floats:
    """Return the error per seed, mean over norms; on few windows where their number is the smaller of the two."""
    few = windows is not None and windows == min(evidence.settings["windows"])
    return evidence.per_seed(evidence.select(probe=PROBE, name=f"error{FEW}" if few else "error", **where))


ERROR = Quantity("relative error of the rescaling alone", _error)
