"""What is recorded of the model of a run, so that its records can be read without it.

Records of the probe ``"model"`` at step 0, by module:

- the name of its class, with the module's place in the order of registration; the model itself is the site ``""``;
- ``order``: its place in the order of first use, of layers whose gradients were read;
- of layers in a chain of which theory knows how gradients grow (``comparing.chains``): ``chain``, the number of the
  chain, and ``level_relu`` or ``level_norm``, the logarithm of the squared gradient that theory expects.

And under the site ``""``, at the steps at which the length of a step is read, ``weight_norm``: the norm of all
parameters that train, before the step.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch.nn import Module

from normscope.comparing.chains import NORM, RELU, Chains
from normscope.modules.batches import leading_tensor
from normscope.records import Record

#: The probe's name of these records.
MODEL = "model"
#: Names of the levels of a chain, by what stands behind each of its layers.
LEVELS = {RELU: "level_relu", NORM: "level_norm"}
#: Names that are of no class.
NOT_CLASSES = ("order", "chain", *LEVELS.values(), "weight_norm")


def model_records(model: Module, cell: str) -> Iterator[Record]:
    """Yield the class of each module.

    Args:
        model: The model as training begins.
        cell: Names the records.
    """
    for index, (site, module) in enumerate(model.named_modules()):
        yield Record(cell, 0, MODEL, site, type(module).__name__, index)


def chain_records(chains: Chains, batch: Any, cell: str) -> Iterator[Record]:
    """Yield what theory expects of the gradients in the chains of a model, after the first step.

    Args:
        chains: The chains, which have looked on at the step.
        batch: Its batch.
        cell: Names the records.
    """
    leading = leading_tensor(batch)
    for layer in chains.expected(len(leading) if leading is not None and leading.ndim else None):
        yield Record(cell, 0, MODEL, layer.site, "chain", layer.chain)
        yield Record(cell, 0, MODEL, layer.site, LEVELS[layer.kind], layer.level)


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
