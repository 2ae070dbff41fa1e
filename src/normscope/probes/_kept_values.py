"""The values of parameters as a step began, and how far they have moved since."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from normscope._errors import UsageError
from normscope.modules.channels import change_products
from normscope.modules.shards import SHARDED, any_distributed, is_distributed, local, summed_over_shards


class KeptValues:
    """Copies of parameters, made once for all probes."""

    def __init__(self) -> None:
        self._values: dict[int, Tensor] = {}
        self._changes: dict[int, list[float]] = {}

    def keep_values(self, parameters: Iterable[Tensor], *, parts: bool = False) -> None:
        """Copy these parameters as they are now, once for all probes; called in ``watch``.

        Args:
            parameters: The parameters.
            parts: Whether this process's part of each is enough where parameters are sharded.

        Raises:
            UsageError: Only a part of a parameter is here.
        """
        for parameter in parameters:
            if not parts and is_distributed(parameter):
                raise UsageError(SHARDED)
            if id(parameter) not in self._values:
                self._values[id(parameter)] = local(parameter.detach()).clone()

    def value_before(self, parameter: Tensor) -> Tensor:
        """Return the copy that ``keep_values`` made as the step began."""
        return self._values[id(parameter)]

    def changes(self, parameters: Sequence[Tensor]) -> list[list[float]]:
        """Return for each parameter that was kept, once for all probes, three products of its change until now.

        Its squared length, its inner product with the value before, and the squared length of that value.
        """
        fresh = {id(parameter): parameter for parameter in parameters if id(parameter) not in self._changes}
        after = [parameter.detach() for parameter in fresh.values()]
        found = change_products([self._values[key] for key in fresh], after)
        if any_distributed(fresh.values()):
            columns = len(found[0])
            parts = [value for row in found for value in row]
            sums = summed_over_shards(parts, [parameter for parameter in fresh.values() for _ in range(columns)])
            found = [sums[at : at + columns] for at in range(0, len(sums), columns)]
        self._changes.update(zip(fresh, found, strict=True))
        return [self._changes[id(parameter)] for parameter in parameters]
