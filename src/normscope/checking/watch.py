"""Rules at the scheduled steps of a scope: they judge the user's own steps, and report each cause once."""

import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import NonFiniteError, UsageError
from normscope.checking.causes import Causes
from normscope.checking.findings import Findings, RuleWarning
from normscope.checking.recent_steps import ParameterGroups, RecentBatches, joined
from normscope.evidence.case import Case, LossFn
from normscope.evidence.evidence import Evidence, NotShownError
from normscope.evidence.listening import Listener, Training
from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import finite, tensors
from normscope.modules.hooks import no_global_hooks, silence
from normscope.modules.reach import left_words
from normscope.modules.tree import walk
from normscope.modules.wrapped import eagerly, is_compiled, rank_of_many, unwrap
from normscope.probes import GradientFlow, PassConditions, Recorder, Saturation, optimizers_of
from normscope.records import Finding
from normscope.rules import AbstractRule, chosen
from normscope.usercode import users_code, warn_user

if TYPE_CHECKING:
    from torch.amp import GradScaler

_WINDOW = 4  # consecutive steps listened to, the last of them due: as many as a check makes
_BATCHES = 10  # batches of the last such steps, over which statistics are taken: as many as in a check
_MISSING = {
    "averaged": "judges averaged weights, which a scope is not given: normscope.check(Case(..., averaged=...))",
    "evaluation": "judges what is evaluated: running statistics lag behind weights that move, which is no defect; "
    "after training, normscope.check(Case(..., eval_loader=...))",
    "exported": "judges what is deployed: normscope.check(Case(..., exported=...))",
    "replicas": "compares processes, which exchange nothing in a scope: normscope.check in all of them",
}
_COMPILED = "judges the loop's own calls of the norms, which cannot be heard in a compiled model"
_NO_LOSS = "runs passes of its own over the batches, and the scope was given no loss_fn(model, batch)"
_WAITING = "synchronised norms of several processes: a pass of one process alone would wait for the others"


class FindingWarning(UserWarning):
    """A rule has found a defect while training. Given once a cause; training goes on."""


class Watch:
    """Rules over a training that is under way, beside the probes of a scope: a ``StepObserver``.

    It listens to the user's own steps: the due step and up to three right before it. After the due step the rules judge
    these steps; rules that need more run passes of their own over the batches of the last ten of them. Parameters,
    buffers, gradients, modes, hooks and random streams stay bit for bit as they were. Batches are kept by reference,
    not copied.

    Args:
        model: The model, in its wrappers.
        loss_fn: The loss that the loop trains on. Without it rules that need passes of their own are not run.
        optimizer: The optimizer or optimizers of the loop.
        select: Codes, names or beginnings of codes; ``"all"`` for every rule.
        every: Rules judge at steps 0, every, 2 * every, ...
        scaler: The gradient scaler of the loop.
        also: What else the loss changes, to be put back after passes of the rules' own.
        on_finding: Called with each new finding.

    Raises:
        UsageError: A code fits no rule, or no rule that it fits can run while training.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn | None,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        select: str | Sequence[str],
        *,
        every: int,
        scaler: "GradScaler | None" = None,
        also: Sequence[Any] = (),
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        self._wrapped, self._loss_fn, self._every = model, loss_fn or _no_loss, every
        self._no_loss = "" if loss_fn is not None else _NO_LOSS
        self._also, self._on_finding = tuple(also), on_finding
        self._optimizers = optimizers_of(optimizer)
        self._rules, self._not_run = _runnable(chosen(_prefixes(select)))
        self._flow: Recorder | None = None
        if any("gradient" in rule.NEEDS for rule in self._rules):
            probes = [GradientFlow(), Saturation()]
            self._flow = Recorder(model, loss_fn, self._optimizers, probes, every=1, scaler=scaler)
        self._unmeasured: dict[str, str] = {}
        self._causes = Causes()
        self._sizes: Counter[int] = Counter()
        self._batches: deque[Any] = deque(maxlen=_BATCHES)
        self._steps: deque[Training] = deque(maxlen=_WINDOW)
        self._last_kept = -2
        self._error: Exception | None = None
        self._off = not self._rules
        self._forget_step(0, [])

    def _forget_step(self, index: int, pending: list[Any]) -> None:
        self._index, self._pending, self._accumulates = index, pending, False
        self._heard: Training | None = None
        self._listener: Listener | None = None
        self._conditions: PassConditions | None = None
        self._attached = ExitStack()

    # -- around the user's step ---------------------------------------------------------------------------------------

    def begin(self, index: int, batches: list[Any]) -> None:
        """Listen to the step if it is due or among the three before a due one."""
        self._forget_step(index, list(batches))
        if self._off or -index % self._every >= _WINDOW:
            return
        try:
            self._attach()
        except Exception as error:
            self._error = error

    def _attach(self) -> None:
        model = self._model = unwrap(self._wrapped)
        self._compiled = is_compiled(self._wrapped)
        self._heard = Training()
        attached = self._attached
        if not self._compiled:
            listener = self._listener = Listener(model, self._optimizers, self._heard, on_error=self._note_error)
            attached.callback(listener.detach)
            listener.attach()
        if self._is_due():
            devices = {parameter.device.type for parameter in model.parameters()}
            self._conditions = PassConditions([module for _, module in walk(model)], devices)
            self._conditions.listen(self._wrapped, lambda handle: attached.callback(handle.remove))
            if self._flow is not None:
                self._flow.index = 0
                attached.enter_context(self._flow.step(None))  # its probes evaluate no loss

    def _is_due(self) -> bool:
        return self._index % self._every == 0

    def _note_error(self, error: Exception) -> None:
        self._error = self._error or error

    def micro_batch(self, batch: Any) -> None:
        """Take the next of several batches; the batch that the step was given is then not used."""
        self._pending = [*self._pending, batch] if self._accumulates else [batch]
        self._accumulates = True

    def end(self, error: BaseException | None) -> None:
        """Remove the hooks, and keep what was heard if the step went well."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a probe that cannot read this model leaves its rules silent
                self._attached.__exit__(type(error) if error is not None else None, error, None)
        except Exception as wrong:
            self._note_error(wrong)
        if error is not None:
            self._steps.clear()
            return
        if not self._off:
            try:
                self._keep()
            except Exception as wrong:
                self._note_error(wrong)

    def _keep(self) -> None:
        for batch in self._pending:
            shapes = [tensor.shape for tensor in tensors(batch) if tensor.ndim]
            if shapes:
                self._sizes[shapes[0][0]] += 1
        if self._heard is None:
            return
        if self._last_kept != self._index - 1:
            self._steps.clear()
        self._last_kept = self._index
        if self._listener is not None:
            self._listener.step_ended()
        if not finite(tensors(self._pending)):
            self._heard.batch_broken = 0
        for earlier in self._steps:
            earlier.inputs = None  # those of the last step are enough
        self._steps.append(self._heard)
        self._batches.extend(self._pending)

    def read(self) -> None:
        """Judge, and warn of new causes. An exception in a rule switches the rule off."""
        if self._off:
            return
        fresh: list[Finding] = []
        failed: dict[str, list[str]] = {}
        if self._error is None and self._is_due():
            try:
                fresh, failed = self._judge()
            except Exception as error:
                self._error = error
        if self._error is not None:
            failed = {_words(self._error): [rule.CODE for rule in self._rules]}
            self._steps.clear()
            self._batches.clear()
        off = {code: why for why, codes in failed.items() for code in codes}
        self._not_run |= off
        self._rules = [rule for rule in self._rules if rule.CODE not in off]
        self._off = not self._rules
        for why, codes in failed.items():
            self._warn(
                RuleWarning, f"{_listed(codes)} failed at step {self._index}, switched off; training goes on: {why}"
            )
        for finding in fresh:
            if self._on_finding is not None:
                self._on_finding(finding)
            at = f", at {_listed(finding.places)}" if any(finding.places) else ""
            self._warn(FindingWarning, f"{finding.code} {finding.slug} at step {self._index}: {finding.message}{at}")

    @staticmethod
    def _warn(kind: type[Warning], text: str) -> None:
        warn_user(text, kind)

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self) -> tuple[list[Finding], dict[str, list[str]]]:
        """Run the rules; return the findings of new causes, and the codes of rules that raised by their error."""
        fresh: list[Finding] = []
        failed: dict[str, list[str]] = {}
        if self._compiled and self._no_loss:  # such a model is looked at in eager passes alone
            self._not_run |= {rule.CODE: self._no_loss for rule in self._rules}
            return fresh, failed
        waiting = rank_of_many() is not None and any(_waits(module) for module in self._model.modules())
        why_not = self._no_loss or (_WAITING if waiting else "")
        case = Case(self._model, self._loss_fn, RecentBatches(self._batches, why_not), also=self._also)
        if self._optimizers:
            case.optimizer = ParameterGroups(self._optimizers)  # type: ignore[assignment]
        with self._apart(case), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evidence = Evidence(
                case,
                batches=len(self._batches),
                training=self._training(case),
                sizes=self._sizes,
                no_flow=_WAITING if waiting else "",
            )
            for rule in self._rules:
                if self._compiled and "loop" in rule.NEEDS:
                    self._not_run[rule.CODE] = _COMPILED
                    continue
                try:
                    findings = list(rule.examine(evidence))
                except NonFiniteError as error:
                    self._unmeasured[rule.CODE] = str(error)
                except NotShownError as error:
                    self._not_run[rule.CODE] = str(error)
                except Exception as error:
                    failed.setdefault(_words(error), []).append(rule.CODE)
                else:
                    self._unmeasured.pop(rule.CODE, None)
                    self._not_run.pop(rule.CODE, None)
                    fresh += [finding for finding in findings if self._causes.add(finding, self._index, case)]
        return fresh, failed

    @contextmanager
    def _apart(self, case: Case) -> Iterator[None]:
        """Have the model compute as in the user's own pass, on buffers of its own and without the user's hooks."""
        with ExitStack() as stack:
            case.reach.open = True  # what is left changed ends the rules, below, and needs no warning
            stack.enter_context(sandbox(case))
            stack.enter_context(no_global_hooks())
            stack.enter_context(eagerly(self._compiled))
            buffers: dict[int, torch.Tensor] = {}
            for _, module in walk(self._model):
                silence(module)
                for key, buffer in module._buffers.items():
                    if buffer is not None:  # nothing is written to the user's own: a graph of the user may hold them
                        module._buffers[key] = buffers.setdefault(id(buffer), buffer.detach().clone())
            if self._conditions is not None:
                self._conditions.set_modes()
                stack.enter_context(self._conditions.autocasting())
            stack.enter_context(torch.enable_grad())
            yield
        if case.reach.left:
            raise UsageError(
                f"the rules' passes have changed what could not be put back: {left_words(case.reach.left)}"
            )

    def _training(self, case: Case) -> Training:
        """Return the last steps as one training; for a compiled model, eager passes over their batches."""
        training = self._repeated(case) if self._compiled else joined(self._steps, counted=bool(self._optimizers))
        training.records = self._flow.drain() if self._flow is not None else []
        return training

    def _repeated(self, case: Case) -> Training:
        training = Training()
        with sandbox(case):
            listener = Listener(self._model, [], training)
            try:
                listener.attach()
                for batch in list(case.loader)[-_WINDOW:]:
                    with users_code("the loss of a recent batch"):
                        self._loss_fn(self._model, batch)
                    listener.step_ended()
            finally:
                listener.detach()
        for call in training.calls:
            call.update = call.step
        return training

    def findings(self) -> Findings:
        """Return what the rules have found so far, worst first."""
        return Findings(
            self._causes.ordered(),
            tuple(self._causes.ignored.values()),
            rules=tuple(rule.CODE for rule in self._rules if rule.CODE not in self._not_run),
            unmeasured=tuple(sorted(self._unmeasured.items())),
            not_run=tuple(sorted(self._not_run.items())),
        )


def _no_loss(_model: Any, _batch: Any) -> Any:
    raise NotShownError(_NO_LOSS)


def _prefixes(select: str | Sequence[str]) -> list[str] | None:
    wanted: list[Any] = list(select) if isinstance(select, (list, tuple, set, frozenset)) else [select]
    if not wanted or not all(isinstance(name, str) and name for name in wanted):
        raise UsageError('rules must be "all", or codes, names or beginnings of codes, such as "NS1" or ["NS104"]')
    return None if wanted == ["all"] else wanted


def _runnable(rules: Sequence[AbstractRule]) -> tuple[list[AbstractRule], dict[str, str]]:
    """Return the rules that can run while training, and by code why the others cannot."""
    missing = {rule.CODE: _MISSING[need] for rule in rules for need in rule.NEEDS if need in _MISSING}
    if len(missing) == len(rules):
        code, why = next(iter(missing.items()))
        raise UsageError(f"none of these rules can run while training; {code} {why}")
    return [rule for rule in rules if rule.CODE not in missing], missing


def _waits(module: Any) -> bool:
    return isinstance(module, torch.nn.SyncBatchNorm) or getattr(module, "statistics", "") == "sync"


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] if isinstance(error, UsageError) else f"{type(error).__name__}: {text[:300]}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
