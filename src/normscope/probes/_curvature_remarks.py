"""What stands out in the records of the curvature, in sentences."""

from collections.abc import Iterator
from statistics import median

from normscope.probes.remarks import Readings, Remark, Urgency, amount, called, decades, percent, times

_CHANGED = 2.0  # a factor; Lanczos itself is within a few percent
_ONE_LAYER = 10.0  # times the median layer
_UNCONVERGED = 0.25  # of the readings


def remarks_on_curvature(readings: Readings) -> Iterator[Remark]:
    """Tell of a sharpness that changed or depends on the statistics, of the sharpest layer, of lower bounds."""
    tops = {name: readings.late(name).get("", 0.0) for name in readings.named("top_eigenvalue")}
    for name, late in tops.items():
        first = readings.first(name).get("", 0.0)
        if min(late, first) > 0 and (turned := max(late / first, first / late)) >= _CHANGED:
            mode = name.partition("@")[2]
            says = (
                f"The sharpest curvature {'rises' if late > first else 'falls'} over training, {times(turned)}: "
                f"from {amount(first)} to {amount(late)}{f' ({mode} statistics)' if mode else ''}."
            )
            yield Remark(says, Urgency.NOTABLE, decades(turned, 1) / 2, ("",), name)
            break
    train, frozen = tops.get("top_eigenvalue@train", 0.0), tops.get("top_eigenvalue@frozen", 0.0)
    if min(train, frozen) > 0 and (ratio := max(frozen / train, train / frozen)) >= _CHANGED:
        says = (
            f"With running statistics held fixed the loss is {times(ratio)} as "
            f"{'sharp' if frozen > train else 'flat'} as with those of the batch: "
            f"{amount(frozen)} against {amount(train)}."
        )
        yield Remark(says, Urgency.NOTABLE, decades(ratio, 1), ("",), "top_eigenvalue@train")
    for name in readings.named("layer_sharpness")[:1]:
        by_layer = {site: value for site, value in readings.late(name).items() if site and value > 0}
        most = max(by_layer, key=by_layer.__getitem__, default="")
        if len(by_layer) > 2 and (over := by_layer[most] / median(by_layer.values())) > _ONE_LAYER:
            says = f"{called(most)} is the sharpest layer: {times(over)} the median of all layers."
            yield Remark(says, Urgency.NOTABLE, decades(over, _ONE_LAYER), (most,), name)
    for name in readings.named("converged"):
        if (share := readings.share(name, lambda value: value == 0)) > _UNCONVERGED:
            says = f"In {percent(share)} of the readings eigenvalues did not converge: they are lower bounds."
            yield Remark(says, Urgency.NOTABLE, 0.0, ("",), name)
            break
