"""Do the sharpest directions move the outputs' moments, and does batch norm block them?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from normscope.plots import Figure, Table, by_depth, curves
from normscope.probes.curvature import Curvature
from normscope.probes.output_moments import OutputMoments
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import conjunction
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, split_of
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm"}
#: Ten outputs, less the one direction to which the softmax is blind.
TOP = 9


class OutputMomentsHessian(AbstractStudy):
    r"""Batch norm blocks the directions that shift the outputs, which are the sharpest ones.

    ## Claim
    Batch norm works because it keeps internal shifts from becoming shifts of the output distribution: the leading
    Hessian eigenvectors of networks without it are directions that move the means and variances of the outputs (Page
    2019, How to Train Your ResNet 7: batch norm).

    ## Method
    Networks with smooth rectifiers are trained with and without batch norm. On the trained network with batch norm, on
    one batch, the largest Hessian eigenvalue with norms frozen at their running statistics over that in train mode:
    the same weights, two functions. And the overlap of the nine leading eigenvectors of the frozen network with the
    span of the gradients of the outputs' means. Supported if the ratio is above 5 and the overlap above 0.7; both must
    hold. The control is the overlap of random vectors with the same span. In the source: 2246 over 128, and .80 to .86
    for each of the first five.

    ## Prediction
    Supported: the covariate shift that matters is that of the outputs, not that of the layers' inputs. In train
    mode the means before a norm cannot reach the outputs at all.

    ## Threats
    Running statistics that lag behind the weights make the frozen network another one; the softmax ignores a common
    shift of all outputs, so one direction of the span is idle. A small network has fewer directions for the same ten
    outputs, which raises the control.
    """

    CODE = "output-moments-hessian"
    CARD = 16
    TOPIC = "landscape"
    EXTENSION = True
    SOURCES = (
        "Page 2019, How to Train Your ResNet 7: Batch Norm (myrtle.ai)",
        "Ghorbani et al. 2019 (arXiv:1901.10159), second hand",
    )
    CLAIM = "The sharpest directions move the means of the outputs, and batch norm in train mode blocks them."
    ENDPOINT = "Top Hessian eigenvalue with norms frozen over in train mode (above 5), and overlap with output means"
    MARGIN = math.log(5)
    VERSION = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 6, "width": 64},
            "activation": "softplus",
            "batch": 128,
            "lr": 0.1,
            "steps": 151,
            "every": 50,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "activation": "softplus",
            "batch": 512,
            "lr": 0.1,
            "steps": 1001,
            "every": 250,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms."""
        for arm in ARMS:
            yield arm, {}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm, with the curvature in both modes on the way and the overlap at the end."""
        settings = cell.settings
        factory = norms.none() if cell.arm == "none" else norms.batch()
        model = network(cell, data, factory, device, activation=settings["activation"])
        last = int(settings["steps"]) - 1
        probes = [Curvature(("eigenvalues",), every=int(settings["every"])), _Last(last)]
        return fit(model, split_of(cell, data, device), cell, probes=probes, every=int(settings["every"]))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the ratio and the overlap together."""
        frozen, train = (np.log(_top(evidence, "batch", mode)) for mode in ("frozen", "train"))
        ratio = self.part(
            evidence,
            frozen - train,
            scale="log-ratio",
            claim="Frozen, the same network is more than five times as sharp.",
            endpoint="Top eigenvalue with norms frozen over in train mode",
            reason=f"{typical(frozen, logs=True)} frozen, {typical(train, logs=True)} in train mode.",
        )
        found = evidence.last("overlap_mean@frozen", probe="output_moments", arm="batch")
        control = evidence.last("random_overlap_mean@frozen", probe="output_moments", arm="batch")
        overlap = self.part(
            evidence,
            found,
            scale="value",
            margin=0.7,
            claim="The frozen network's sharpest directions lie in the span of the gradients of the outputs' means.",
            endpoint="Overlap of the nine leading eigenvectors with that span, frozen",
            reason=f"{typical(found)}, against {typical(control)} for random vectors.",
        )
        plain = evidence.last("overlap_mean@train", probe="output_moments", arm="none")
        without = self.part(
            evidence,
            plain,
            scale="value",
            margin=0.7,
            claim="So do those of the network without batch norm.",
            endpoint="Overlap of the nine leading eigenvectors with that span, no batch norm",
            reason=f"{typical(plain)}.",
        )
        outcome, p, decisive = conjunction([ratio, overlap], 1 - evidence.level)
        return self.verdict(
            outcome,
            decisive.effect,
            margin=decisive.margin,
            reason=f"{ratio.reason} Overlap {overlap.reason} Without batch norm the top eigenvalue is "
            f"{typical(np.log(_top(evidence, 'none', 'train')), logs=True)}.",
            p_value=p,
            primary=True,
            parts=[ratio, overlap, without],
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the top eigenvalue while training, and by layer how far the weights can shift the outputs."""
        return [
            curves(
                evidence.select(probe="curvature"),
                y=["top_eigenvalue@train", "top_eigenvalue@frozen"],
                slug="top-eigenvalue",
                title="Largest Hessian eigenvalue, in train mode and with norms frozen",
                y_title="Largest eigenvalue",
                log=True,
                labels={**ARMS, "top_eigenvalue@train": "train mode", "top_eigenvalue@frozen": "norms frozen"},
                caption=f"At the end, with batch norm, {typical(_top(evidence, 'batch', 'frozen'))} frozen and "
                f"{typical(_top(evidence, 'batch', 'train'))} in train mode.",
            ),
            by_depth(
                evidence.select(probe="output_moments", name="output_mean_gradient@train"),
                y="output_mean_gradient@train",
                slug="by-layer",
                title="How far each layer's weights move the outputs' means, train mode",
                y_title="Squared gradient of the outputs' means",
                labels=ARMS,
                caption="In train mode a layer before a batch norm can shift the outputs' means only through higher "
                "moments.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate eigenvalues and overlaps."""
        rows = tuple(
            (
                words,
                mode,
                typical(_top(evidence, arm, mode)),
                typical(evidence.last(f"overlap_mean@{mode}", probe="output_moments", arm=arm)),
                typical(evidence.last(f"overlap_all@{mode}", probe="output_moments", arm=arm)),
                typical(evidence.last(f"random_overlap_all@{mode}", probe="output_moments", arm=arm)),
            )
            for arm, words in ARMS.items()
            for mode in (("train", "frozen") if arm == "batch" else ("train",))
        )
        columns = ("Network", "Mode", "Top eigenvalue", "Overlap, means", "Overlap, all moments", "Random, all")
        return [Table("At the end of training", columns, rows)]


class _Last(OutputMoments):
    __doc__ = OutputMoments.__doc__

    def __init__(self, step: int) -> None:
        super().__init__(every=max(1, step), top=TOP, products=100)

    def read(self, step: Any) -> Any:
        """Leave the first step out: every multiple of the last one is due, and 0 is one."""
        if step.index:
            yield from super().read(step)


def _top(evidence: Evidence, arm: str, mode: str) -> np.ndarray:
    return evidence.last(f"top_eigenvalue@{mode}", probe="curvature", arm=arm)
