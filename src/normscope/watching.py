"""The scope: probes and rules at the steps of a training loop, and the page of their records and findings."""

import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope import checking, plots, rules
from normscope._errors import UsageError
from normscope.plots import Figure, Table
from normscope.probes import AbstractProbe, LossFn, Recorder, RecordSink, Wanted
from normscope.records import Store, provenance
from normscope.report import Checked, RuleNote, Section, check_json, counted, save, write

if TYPE_CHECKING:
    import polars
    from torch.amp import GradScaler
    from torch.nn import Module
    from torch.optim import Optimizer

_PERCENTILES = ("p15", "p50", "p85")
_GRID_POINT = re.compile(r"@s=|@.*=\d")  # one point of a probe's grid: drawn as part of a range, not by itself
_SPREAD_FOR_LOG = 30.0


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
        frame = self.records()
        sections = [] if self._watch is None or not self.index else [_findings_section(self.findings(), self.index)]
        if frame.is_empty() and not sections:
            raise UsageError("nothing was recorded yet: run at least one `with scope.step(batch)` that is due")
        if not frame.is_empty():
            sections += sections_of(frame, self.probes)
        what = "the probes" if self._watch is None else "probes and rules" if self.probes else "the rules"
        return write(
            Path(path),
            title=f"What {what} saw: {type(self.model).__name__}",
            sections=sections,
            provenance=provenance.collect(),
            lede=f"{counted(frame.height, 'record')} of {counted(self.index, 'training step')}."
            + ("" if self._watch is None else f" {counted(len(self.findings()), 'finding')}."),
        )

    def close(self) -> None:
        """Write out pending records, and the findings of the rules as JSON into the run folder.

        The file is ``findings-CELL.json``, in the form of ``normscope check --format json``. The scope can be used
        again.

        Raises:
            StoreError: The folder cannot be written.
        """
        super().close()
        if self._watch is not None and isinstance(self.sink, Store):
            save(self.sink.path / f"findings-{self.cell}.json", check_json(_checked(self.findings(), self.model)))


def _checked(findings: checking.Findings, model: Any) -> Checked:
    notes = [f"{code} was not run: {why}" for code, why in findings.not_run]
    return Checked(
        target=f"{type(model).__name__}, while training",
        findings=findings.found,
        ignored=findings.ignored,
        rules=[
            RuleNote(rule.CODE, rule.SLUG, rule.title(), rule.SEVERITY, rule.SAFE)
            for rule in rules.all()
            if rule.CODE in findings.rules
        ],
        failed=findings.unmeasured,
        notes=notes,
    )


def _findings_section(findings: checking.Findings, steps: int) -> Section:
    """Return the findings of the rules as a section."""
    tables = [
        Table(
            "Findings",
            ("code", "severity", "what", "where", "measured", "first step", "last step"),
            tuple(_row(finding) for finding in findings),
            caption="Each cause once; `normscope explain CODE` has the page of a rule.",
        )
    ]
    left = [*findings.not_run, *findings.unmeasured]
    left += [
        (ignored.code, f"ignored at {', '.join(ignored.places)}: {reason}") for ignored, reason in findings.ignored
    ]
    if left:
        tables.append(Table("Not judged", ("code", "why"), tuple(left)))
    words = counted(len(findings), "finding") if len(findings) else "nothing was found"
    return Section(
        slug="rules",
        title="What the rules found while training",
        claim=f"Defects of normalization, by {counted(len(findings.rules), 'rule')} over "
        f"{counted(steps, 'training step')}: {words}.",
        page={},
        verdicts=(),
        tables=tuple(table for table in tables if table.rows),
        kind="check",
    )


def _row(finding: Any) -> tuple[Any, ...]:
    shown = ", ".join(finding.places[:4]) + (f" and {len(finding.places) - 4} more" if len(finding.places) > 4 else "")
    steps = (int(finding.details["first_step"]), int(finding.details["last_step"]))
    return finding.code, finding.severity.value, finding.message, shown or "the whole model", finding.measured, *steps


def sections_of(frame: "polars.DataFrame", probes: Sequence[AbstractProbe]) -> list[Section]:
    """Make one section a probe, in the order in which the scope holds them.

    Args:
        frame: A scope's records.
        probes: Its probes; one without records is passed over.
    """
    import polars as pl

    frame = frame.with_columns(pl.col("cell").alias("arm"), pl.lit(0).alias("seed"))
    found = []
    for kind in dict.fromkeys(type(probe) for probe in probes):
        records = frame.filter(pl.col("probe") == kind.CODE)
        if records.is_empty():
            continue
        page = kind.page()
        found.append(
            Section(
                slug=kind.CODE.replace("_", "-"),
                title=kind.title(),
                claim=page["Measures"],
                page={heading: text for heading, text in page.items() if heading != "Measures"},
                verdicts=(),
                figures=tuple(_figures(records)),
                kind="probe",
            )
        )
    return found


def _figures(records: "polars.DataFrame") -> Iterator[Figure]:
    import polars as pl

    names = records["name"].unique(maintain_order=True).to_list()
    probe = records["probe"][0]
    rest = [name for name in names if not _GRID_POINT.search(name)]
    if set(_PERCENTILES) <= set(names):
        yield plots.percentiles(records, title="15th, 50th and 85th percentile in the last layer", slug=f"{probe}-last")
        rest = [name for name in rest if name not in _PERCENTILES]
    ranges = {name.partition("@")[0][: -len("_min")] for name in rest if name.partition("@")[0].endswith("_min")}
    for stem in sorted(ranges):
        low, high = f"{stem}_min", f"{stem}_max"
        yield plots.landscape_band(
            records, title=f"Range of the {stem} along the line", low=low, high=high, slug=f"{probe}-{stem}"
        )
        rest = [name for name in rest if name.partition("@")[0] not in (low, high)]
    several_steps = records["step"].n_unique() > 1
    for name in rest:
        rows = records.filter(pl.col("name") == name)
        slug, title = f"{probe}-{name}", plots.readable(name)
        if rows["site"].n_unique() == 1:
            yield plots.curves(rows, y=name, title=title, slug=slug, log=_wide(rows))
            continue
        if several_steps:
            yield plots.heatmap(rows, y=name, title=f"{title}, by layer and step", slug=f"{slug}-map", log=_wide(rows))
        yield plots.by_depth(rows, y=name, title=f"{title}, by layer", slug=slug, log=_wide(rows))


def _wide(rows: "polars.DataFrame") -> bool:
    """Return whether the values are positive and span more than an axis of equal steps can show."""
    values = rows["value"].drop_nans()
    values = values.filter(values.is_finite())
    if values.is_empty():
        return False
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    return low > 0 and high / low > _SPREAD_FOR_LOG
