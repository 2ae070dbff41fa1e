"""What is recorded of the model of a run, so that its records can be read without it.

Records of the probe ``"model"`` at step 0, by module:

- the name of its class, with the module's place in the order of registration; the model itself is the site ``""``;
- ``order``: its place in the order of first use, of layers whose gradients were read;
- ``weight_gain``: mean square of its initial weights times the number of inputs of a unit, of linear layers: 2 is He's
  scale, 1/3 torch's default.

And under the site ``""``: ``batch``, the number of samples of the first batch; and at the steps at which the length of
a step is read ``weight_norm``, the norm of all parameters that train, before the step.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch.nn import Linear, Module

from normscope.modules.batches import leading_tensor
from normscope.records import Record

#: The probe's name of these records.
MODEL = "model"
#: Names that are of no class.
NOT_CLASSES = ("order", "weight_gain", "weight_norm", "batch")


def model_records(model: Module, cell: str) -> Iterator[Record]:
    """Yield the class of each module, and the scale of the weights of linear layers.

    Args:
        model: The model as training begins.
        cell: Names the records.
    """
    for index, (site, module) in enumerate(model.named_modules()):
        yield Record(cell, 0, MODEL, site, type(module).__name__, index)
        if isinstance(module, Linear) and module.weight.is_floating_point():
            weight = module.weight.detach().float()
            yield Record(cell, 0, MODEL, site, "weight_gain", float(weight.square().mean()) * weight.shape[1])


def batch_record(batch: Any, cell: str) -> Iterator[Record]:
    """Yield how many samples a batch has, if it has a tensor.

    Args:
        batch: The first batch.
        cell: Names the record.
    """
    leading = leading_tensor(batch)
    if leading is not None and leading.ndim:
        yield Record(cell, 0, MODEL, "", "batch", leading.shape[0])


def order_records(records: Iterable[Record], cell: str) -> Iterator[Record]:
    """Yield the order of first use of the layers whose gradients were read, which a store does not keep.

    Args:
        records: Those of a run as a recorder gives them.
        cell: Names the records.
    """
    sites = dict.fromkeys(
        record.site for record in records if record.probe == "gradient_flow" and record.name == "output_norm"
    )
    for index, site in enumerate(sites):
        yield Record(cell, 0, MODEL, site, "order", index)


def weight_norm(model: Module, cell: str, step: int) -> Record:
    """Return the norm of all parameters that train.

    Args:
        model: The model.
        cell: Names the record.
        step: The step that comes next.
    """
    lengths = [float(parameter.detach().float().norm()) for parameter in model.parameters() if parameter.requires_grad]
    return Record(cell, step, MODEL, "", "weight_norm", math.hypot(*lengths))
