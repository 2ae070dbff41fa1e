"""How the distributions at the norms' outputs move while a network trains, on a fixed batch."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normscope.records import Cell, Record
from normscope.studies.lab.arms import Noted, recorder


class Trail:
    """Follows every unit of every ``Noted`` site; a ``watch`` of ``lab.train.train``.

    Records, probe ``trail``, per site, means over units, at every reading t:

    - ``iqr``: interquartile range of the unit's values over the batch; ``median``, ``low`` and ``high``: the 50th, 15th
      and 85th percentile of unit 0, which is what Ioffe & Szegedy 2015, Figure 1 draws;
    - ``path``: 1-Wasserstein distance to the last reading, $W_1(P_{t-1}, P_t)$; ``shape_path``: the same after
      each reading is standardized to mean 0 and variance 1;
    - at the end, from ``finish``: ``displacement`` $W_1(P_0, P_T)$, and ``settled``: the step from which the
      median stays within a tenth of the final interquartile range of its final value, and the range within a tenth.

    The network reads the batch in train mode with copies of its buffers, so training is not touched.

    Args:
        cell: Names the records.
        x: The batch (N, *).
        every: Steps between readings.
    """

    def __init__(self, cell: Cell, x: Tensor, every: int) -> None:
        self._record = recorder(cell, "trail")
        self._x = x
        self._every = every
        self._steps: list[int] = []
        self._sorted: dict[str, list[Tensor]] = {}

    def __call__(self, step: int, model: nn.Module) -> Iterator[Record]:
        """Read the network at a step that is due."""
        if step % self._every:
            return
        self._steps.append(step)
        state = {name: tensor.detach() for name, tensor in model.named_parameters()}
        buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
        outputs = {path: module.output for path, module in model.named_modules() if isinstance(module, Noted)}
        with torch.no_grad():
            functional_call(model, (state, buffers), (self._x,))
        for path, module in model.named_modules():
            if isinstance(module, Noted) and module.output is not None:
                values = module.output.detach().double().sort(0).values
                module.output = outputs[path]
                yield from self._site(path, values, step)

    def _site(self, path: str, values: Tensor, step: int) -> Iterator[Record]:
        seen = self._sorted.setdefault(path, [])
        if seen:
            yield self._record("path", (values - seen[-1]).abs().mean(), step, path)
            yield self._record("shape_path", (_standard(values) - _standard(seen[-1])).abs().mean(), step, path)
        seen.append(values)
        yield self._record("iqr", _range(values).mean(), step, path)
        for name, level in (("low", 0.15), ("median", 0.5), ("high", 0.85)):
            yield self._record(name, values[int(level * (len(values) - 1)), 0], step, path)

    def finish(self) -> Iterator[Record]:
        """Yield what needs the whole run."""
        for path, seen in self._sorted.items():
            step = self._steps[len(seen) - 1]
            yield self._record("displacement", (seen[-1] - seen[0]).abs().mean(), step, path)
            stack = torch.stack(seen)  # readings, samples, units
            middle = stack[:, stack.shape[1] // 2]
            spread = _range(stack, 1)
            away = ((middle - middle[-1]).abs() > 0.1 * spread[-1]) | ((spread / spread[-1] - 1).abs() > 0.1)
            last = (away * torch.arange(1, len(seen) + 1)[:, None].to(away.device)).amax(0)
            yield self._record("settled", last.double().mean() * self._every, step, path)


def _range(values: Tensor, axis: int = 0) -> Tensor:
    """Return the interquartile range along an axis of sorted values."""
    count = values.shape[axis] - 1
    return values.select(axis, round(0.75 * count)) - values.select(axis, round(0.25 * count))


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0).clamp_min(1e-12)
