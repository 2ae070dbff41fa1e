"""The scope: probes and rules at the steps of a training loop."""

import contextlib
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from normscope import checking, seen
from normscope._errors import NormscopeError, UsageError
from normscope.probes import (
    Attachment,
    LossFn,
    Recorder,
    RecordSink,
    Sink,
    SinkWarning,
    Wanted,
    default_probes,
)
from normscope.records import Store
from normscope.records.numbers import counted
from normscope.records.wide import to_pandas, wide
from normscope.report import check_json, save
from normscope.usercode import warn_user

if TYPE_CHECKING:
    import polars
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
    - *Clipping*: gradients are read as the backward pass ends, before clipping; ``gradient_flow`` records what the
      optimizer was handed beside them where it differs. Several backward passes before an update add up; of an
      optimizer that evaluates a closure many times (LBFGS) the first evaluation counts.
    - *Optimizers*: those that trainers wrap (Accelerate, Lightning) are read as the optimizer inside. An optimizer that
      calls no step hooks, nor holds one that does, shows what it was handed only as the step ends.
    - *Mixed precision*: costly probes repeat the autocast that each module ran under, whatever part of the model the
      loop calls first; rules that of the first module. What ``loss_fn`` turns on by itself is not turned on twice. Give
      a gradient scaler as ``scaler``: gradients are read without its scale.
    - *Compiled models* (``torch.compile``): the compiled code stays as it is. Probes that listen to modules read one
      eager pass of ``loss_fn`` instead, at the same parameters, buffers and random streams: a due step costs one plain
      step more, shared with the costly probes, and values are rounded as in eager code. Rules read eager passes over
      recent batches; rules about the loop itself are not run.
    - *Several processes* (``DistributedDataParallel``): each process records its own batch as a cell of its own,
      ``CELL.rank0``, ``CELL.rank1``, ..., into the same run folder; they exchange nothing. Make the scope after the
      process group. With norms that exchange statistics (synchronised batch norm) the passes of costly probes are of
      the mean loss of all processes, and run at the same time in each: give every process the same probes. Before each
      pass the processes agree on it, so that a probe that fails in one fails in all, and none waits for another more
      than two minutes. Only an error in the middle of a pass, while others wait for its values, ends the training, with
      a ``BrokenPassError``. Rules that need passes of their own are then not run.
    - *Sharded parameters* (``fully_shard``): norms of gradients, updates and weights are the whole ones. Probes that
      read whole weights or evaluate the loss again are not read, and say so.
    - *Saving and copying* the model within a step works: a copy has no hooks of the scope. Scripted and traced models
      are refused.
    - *The user's own gradient* serves as the gradient of the step once the two are proven equal bit for bit: wholly at
      the first due step, and at every later one by the gradient that the loss sends back into the model's output.

    Args:
        model: Any module, also compiled or wrapped for data-parallel training.
        loss_fn: ``loss_fn(model, batch) -> scalar``, the loss that the loop trains on, without loss scale. Used only
            by probes and rules that evaluate the loss again; it must reach the parameters through ``model``, which it
            gets without its wrappers. Without it those probes and rules are not read, and ``not_read`` says so.
        optimizer: The optimizer or optimizers. With them it is seen what they are handed, and for which
            parameters; without, probes that need a learning rate must be given one.
        probes: A code (``"gradient_flow"``), a question (``"gradient"``, ``"smoothness"``, ``"shift"``,
            ``"statistics"``, ``"sharpness"``), ``"all"``, a class, a probe, or several of these. By default a cheap set
            about gradients and statistics that evaluates no loss.
        rules: Rules to run while training: ``"all"``, a code, a name or a beginning (``"NS1"``), or several of them.
        every: Read at steps 0, every, 2 * every, ...; a probe's own ``every`` takes precedence.
        record_to: None keeps the records in memory; a path makes or continues a run folder there; or anything with
            ``append``, ``flush`` and ``frame``.
        cell: Name under which the records are filed. A further run into the same folder is filed under ``CELL.run2``.
        scaler: The gradient scaler of a mixed-precision loop. Needs ``optimizer``.
        also: Modules, optimizers, tensors and other objects beside the model that evaluating the loss changes, and
            that are put back after it.
        start: Number of the first step, where a training is taken up again; ``"continue"`` takes up the last run in the
            folder after its last recorded step.
        sinks: Further places where records, findings and the page go: ``normscope.integrations`` has some.

    Raises:
        UsageError: A code names no probe, or fits no rule or only rules that cannot run while training; ``every`` is
            below 1, ``model`` is no module or a scripted one, ``loss_fn`` cannot be called, ``optimizer`` is no
            optimizer, ``start`` is no step, ``cell`` is no name, or a scaler comes without optimizer.
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
        loss_fn: LossFn | None = None,
        optimizer: "Optimizer | Sequence[Optimizer] | None" = None,
        probes: Wanted | None = None,
        *,
        rules: str | Sequence[str] | None = None,
        every: int = 50,
        record_to: "str | PathLike[str] | RecordSink | None" = None,
        cell: str = "scope",
        scaler: "GradScaler | None" = None,
        also: Sequence[Any] = (),
        start: int | str = 0,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._watch: checking.Watch | None = None
        self._attachment: Attachment | None = None
        if rules is not None and isinstance(model, torch.nn.Module):  # refused before a run folder is made
            self._watch = checking.Watch(
                model, loss_fn, optimizer, rules, every=every, scaler=scaler, also=also, on_finding=self.tell
            )
        super().__init__(
            model,
            loss_fn,
            optimizer,
            default_probes() if probes is None else probes,
            every=every,
            record_to=record_to,
            cell=cell,
            scaler=scaler,
            also=also,
            start=start,
            sinks=sinks,
            observers=[] if self._watch is None else [self._watch],
        )

    def attach(self) -> "Scope":
        """Follow the loop by hooks of the optimizers and of the model, as ``normscope.watch`` does; return the scope.

        Raises:
            UsageError: The scope is attached already.
        """
        if self._attachment is not None:
            raise UsageError("the scope is attached already")
        self._attachment = Attachment(self)
        return self

    def detach(self) -> None:
        """Remove the hooks by which the scope follows the loop, if it is attached."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    @property
    def not_read(self) -> dict[str, str]:
        """Codes of the probes and rules that have read nothing so far, each with the reason in words."""
        return super().not_read | ({} if self._watch is None else dict(self.findings().not_run))

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
            UsageError: Nothing was recorded yet, and no rule has run; or the path is not that of an HTML file.
            StoreError: The path cannot be written.
        """
        return seen.write(path, self._seen())

    def summary(self) -> str:
        """Return as plain text what stands out so far, with the names of layers, and what was not read."""
        return seen.summary_of(self._seen())

    def wide(self, probe: str) -> "polars.DataFrame":
        """Return what a probe read, with a row for each step and site, and a column for each quantity.

        Args:
            probe: The probe's code, such as ``"gradient_flow"``.

        Raises:
            UsageError: The probe has no records.
        """
        return wide(self.records(), probe)

    def to_pandas(self, probe: str | None = None) -> Any:
        """Return all records as a ``pandas.DataFrame``; those of one probe as ``wide`` does.

        Raises:
            UsageError: pandas is not installed, or the probe has no records.
        """
        return to_pandas(self.records() if probe is None else self.wide(probe))

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return seen.html_of(self._seen())

    def _seen(self) -> seen.Seen:
        frame = self.records()
        own = frame.filter(frame["cell"] == self.cell)  # the folder may hold other runs: `normscope report` shows them
        return seen.in_memory(own, [self._seen_cell()], self.sink.path if isinstance(self.sink, Store) else None)

    def _seen_cell(self) -> seen.CellFacts:
        return seen.facts_of(
            self.cell,
            self.model,
            self.index,
            None if self._watch is None else self._watch.findings(),
            super().not_read,
            self.wiring,
        )

    def __repr__(self) -> str:
        probes = ", ".join(probe.CODE for probe in self.probes) or "no probes"
        where = f", records in {self.sink.path}" if isinstance(self.sink, Store) else ""
        state = "attached" if self._attachment is not None else "not attached"
        return (
            f"<Scope on {type(self.model).__name__}, {state}: {counted(self.index, 'step')}, read at every "
            f"{self.every}: {probes}{where}>"
        )

    def close(self) -> None:
        """Write out what is pending, and hand the page to the sinks.

        Pending records go into the run folder, and with rules their findings, as ``findings-CELL.json`` in the form of
        ``normscope check --format json``. What could not be written is told by a ``SinkWarning``; nothing is raised.
        The scope can be used again.
        """
        with tempfile.TemporaryDirectory(prefix="normscope-") as folder:
            page = None
            if self.sinks:
                with contextlib.suppress(NormscopeError):  # nothing was recorded
                    page = self.report(Path(folder) / f"{self.cell}.html")
            self.deliver(page)
        if isinstance(self.sink, Store):
            try:
                self._seen_cell().save(self.sink.path)
                if self._watch is not None:
                    found = seen.checked(self.findings(), type(self.model).__name__)
                    save(self.sink.path / f"findings-{self.cell}.json", check_json(found))
            except NormscopeError as error:
                warn_user(f"what the rules found was not written: {error}", SinkWarning)

    def __exit__(self, *_: object) -> None:
        self.detach()
        self.close()
