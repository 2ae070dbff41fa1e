"""The scope: probes and rules at the steps of a training loop."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope import checking, seen
from normscope._errors import UsageError
from normscope.probes import LossFn, Recorder, RecordSink, Wanted
from normscope.records import Store
from normscope.report import check_json, save

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.nn import Module
    from torch.optim import Optimizer


class Scope(Recorder):
    """Reads probes and runs rules at the scheduled steps of a training loop, and leaves no trace in it.

    Training with a scope attached is bit-identical to training without. A step that is not due costs one
    comparison. A probe that raises is reported once by a ``ProbeWarning`` with its name, and switched off; a rule that
    raises likewise by a ``RuleWarning``.

    Rules judge the user's own steps: the due step and up to three steps right before it. The batches of the last ten
    such steps are kept, by reference, for rules that must run passes of their own. Each cause, a code with the places
    where it shows, is reported once, by a ``FindingWarning`` of one line; ``findings()`` names the steps at which it
    was first and last found. Rules that judge something that a scope is not given (evaluation data, averaged weights,
    the deployed model, other processes) are listed there as not run, with the reason.

    With ``rules="all"`` a due step takes as long as 10 to 26 plain steps, for some fourteen forward passes of the
    rules' own, and each of the three steps before it as long as 1.1 to 2.5: this adds 20 to 60 % to a training at
    ``every=50``, 2 to 6 % at ``every=500``. Rules about the loop alone (``["NS106", "NS110", "NS111", "NS112",
    "NS113"]``) run no passes: a due step takes as long as 1.1 to 5 plain steps.

    How it meets a loop's machinery:

    - *Several losses*: ``loss_fn`` returns their sum. Modules' output gradients are read per backward pass.
    - *Gradient accumulation*: call ``scope.micro_batch(batch)`` before each forward pass; the loss of the step is then
      the mean of the micro-batches', and costly probes evaluate it over all of them.
    - *Mixed precision*: costly probes and rules repeat the autocast that the model's own forward pass ran under. Give a
      gradient scaler as ``scaler``: gradients are read without its scale.
    - *Compiled models* (``torch.compile``): the compiled code stays as it is. Probes that listen to modules read one
      eager pass of ``loss_fn`` instead, at the same parameters, buffers and random streams: a due step costs one plain
      step more, shared with the costly probes, and values are rounded as in eager code. Rules read eager passes over
      recent batches; rules about the loop itself are not run.
    - *Several processes* (``DistributedDataParallel``): each process records its own batch as a cell of its own,
      ``CELL.rank0``, ``CELL.rank1``, ..., into the same run folder; they exchange nothing. Make the scope after the
      process group. Layers that communicate in their forward pass (synchronised batch norm) need the same probes on
      every rank; with them, rules that need passes of their own are not run.
    - *The user's own gradient* serves as the gradient of the step once the two are proven equal bit for bit: wholly at
      the first due step, and at every later one by the gradient that the loss sends back into the model's output.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on, without loss scale. Used only
            by probes and rules that evaluate the loss again; it must reach the parameters through ``model``, which it
            gets without its wrappers.
        optimizer: The optimizer or optimizers. With them gradients are read right before the update; without, from
            ``.grad`` when the step ends, and probes that need a learning rate must be given one.
        probes: Probes, or their codes.
        rules: Rules to run while training: ``"all"``, a code, a name or a beginning (``"NS1"``), or several of them.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` takes precedence.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed.
        scaler: The gradient scaler of a mixed-precision loop. Needs ``optimizer``.
        also: Modules, optimizers, tensors and other objects beside the model that evaluating the loss changes, and
            that are put back after it.

    Raises:
        UsageError: A code names no probe, or fits no rule or only rules that cannot run while training; ``every`` is
            below 1, ``model`` is no module, ``optimizer`` is no optimizer, or a scaler comes without optimizer.
        StoreError: ``record_to`` is a folder that cannot be written or holds another run.

    Example:
        >>> scope = Scope(model, loss_fn, optimizer, probes=["gradient_flow"], rules="all", every=50)
        >>> for batch in loader:
        ...     with scope.step(batch):
        ...         optimizer.zero_grad()
        ...         loss_fn(model, batch).backward()
        ...         optimizer.step()
        >>> scope.records()
        >>> [finding.code for finding in scope.findings()]
    """

    def __init__(
        self,
        model: "Module",
        loss_fn: LossFn,
        optimizer: "Optimizer | Sequence[Optimizer] | None" = None,
        probes: Wanted = (),
        *,
        rules: str | Sequence[str] | None = None,
        every: int = 50,
        record_to: "str | PathLike[str] | RecordSink | None" = None,
        cell: str = "scope",
        scaler: "GradScaler | None" = None,
        also: Sequence[Any] = (),
    ) -> None:
        self._watch: checking.Watch | None = None
        if rules is not None:  # refused before a run folder is made
            self._watch = checking.Watch(model, loss_fn, optimizer, rules, every=every, scaler=scaler)
        super().__init__(
            model,
            loss_fn,
            optimizer,
            probes,
            every=every,
            record_to=record_to,
            cell=cell,
            scaler=scaler,
            also=also,
            observers=[] if self._watch is None else [self._watch],
        )

    def findings(self) -> checking.Findings:
        """Return what the rules have found so far, worst first, as ``normscope.check`` does.

        Returns:
            The findings; a finding's ``details`` say at which steps it was seen: ``first_step``, ``last_step`` and the
            number of ``readings``. ``not_run`` lists the rules that could not run, with the reason.

        Raises:
            UsageError: The scope was made without rules.
        """
        if self._watch is None:
            raise UsageError('this scope runs no rules: make it with rules="all", or with codes')
        return self._watch.findings()

    def report(self, path: str | PathLike[str] = "report.html") -> Path:
        """Write one self-contained page: the findings of the rules, then figures of every record of the probes so far.

        Args:
            path: The HTML file to write.

        Returns:
            The path written.

        Raises:
            UsageError: Nothing was recorded yet, and no rule has run.
            StoreError: The path cannot be written.
        """
        return seen.write(path, self._seen())

    def summary(self) -> str:
        """Return as plain text what stands out so far, with the names of layers, and what was not read."""
        return seen.summary_of(self._seen())

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return seen.html_of(self._seen())

    def _seen(self) -> seen.Seen:
        return seen.in_memory(self.records(), [self._facts()], self.sink.path if isinstance(self.sink, Store) else None)

    def _facts(self) -> seen.CellFacts:
        return seen.facts_of(
            self.cell,
            self.model,
            self.index,
            None if self._watch is None else self._watch.findings(),
        )

    def close(self) -> None:
        """Write out pending records, and the findings of the rules as JSON into the run folder.

        The file is ``findings-CELL.json``, in the form of ``normscope check --format json``. The scope can be used
        again.

        Raises:
            StoreError: The folder cannot be written.
        """
        super().close()
        if not isinstance(self.sink, Store):
            return
        self._facts().save(self.sink.path)
        if self._watch is not None:
            found = seen.checked(self.findings(), type(self.model).__name__)
            save(self.sink.path / f"findings-{self.cell}.json", check_json(found))
