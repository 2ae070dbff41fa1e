"""Rules at the scheduled steps of a scope: what the user's own steps show is judged, and each cause is told once."""

import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from normscope._errors import NonFiniteError, UsageError
from normscope.checking.checks import Findings, chosen
from normscope.evidence.case import Case, LossFn
from normscope.evidence.evidence import Evidence, NotShownError
from normscope.evidence.listening import Listener, Training
from normscope.evidence.sandbox import sandbox, users_code
from normscope.modules.autocast import autocast_now, autocasting
from normscope.modules.batches import finite, tensors
from normscope.modules.hooks import no_global_hooks, silence
from normscope.modules.tree import walk
from normscope.modules.wrapped import calls_eagerly, eagerly, is_compiled, rank_of_many, unwrap
from normscope.probes import GradientFlow, Saturation, Scope
from normscope.probes._step_guard import StepGuard
from normscope.records import Finding
from normscope.rules._rule import AbstractRule

if TYPE_CHECKING:
    from torch.amp import GradScaler

_WINDOW = 4  # consecutive steps that are listened to, the last of them due: as many as a check makes
_BATCHES = 10  # the last ones of such steps, over which statistics are taken: as many as in a check
_MISSING = {
    "averaged": "judges averaged weights, which a scope is not given: normscope.check(Case(..., averaged=...))",
    "evaluation": "judges what is evaluated: running statistics lag behind weights that move, which is no defect; "
    "after training, normscope.check(Case(..., eval_loader=...))",
    "exported": "judges what is deployed: normscope.check(Case(..., exported=...))",
    "replicas": "compares processes, which exchange nothing in a scope: normscope.check in all of them",
}
_COMPILED = "judges the loop's own calls of the norms, which cannot be heard in a compiled model"
_WAITING = "synchronised norms of several processes: a pass of one process alone would wait for the others"


class FindingWarning(UserWarning):
    """A rule has found a defect while training. Told once a cause; training goes on."""


class RuleWarning(UserWarning):
    """Rules failed while training and are switched off; training goes on."""


class Watch:
    """Rules over a training that is under way, beside the probes of a scope.

    The user's own steps are listened to: the due one and up to three right before it. After the due step the rules
    judge what was heard; those that need more run passes of their own over the batches of the last ten such steps.
    Nothing is left behind by it: parameters, buffers, gradients, modes, hooks and random streams are bit for bit as
    they were. Batches are kept as they are given, not copied.

    Args:
        model: As the scope has it.
        loss_fn: As the scope has it.
        optimizers: Those of the scope.
        select: Codes, names or beginnings of codes; ``"all"`` for every rule.
        every: Rules judge at steps 0, every, 2 * every, ...
        scaler: The gradient scaler of the loop.

    Raises:
        UsageError: A code fits no rule, or no rule that it fits can run while training.
    """

    def __init__(
        self,
        model: Module,
        loss_fn: LossFn,
        optimizers: Sequence[Optimizer],
        select: str | Sequence[str],
        *,
        every: int,
        scaler: "GradScaler | None" = None,
    ) -> None:
        self._given, self._loss_fn, self._optimizers, self._every = model, loss_fn, list(optimizers), every
        self._rules, self._not_run = _runnable(chosen(_prefixes(select)))
        self._flowing: Scope | None = None
        if any("gradient" in rule.NEEDS for rule in self._rules):
            self._flowing = Scope(
                model, loss_fn, self._optimizers, [GradientFlow(), Saturation()], every=1, scaler=scaler
            )
        self._unmeasured: dict[str, str] = {}
        self._found: list[Finding] = []
        self._ignored: dict[tuple[str, tuple[str, ...]], tuple[Finding, str]] = {}
        self._sizes: Counter[int] = Counter()
        self._batches: deque[Any] = deque(maxlen=_BATCHES)
        self._pieces: deque[Training] = deque(maxlen=_WINDOW)
        self._last_heard = -2
        self._index = 0
        self._pending: list[Any] = []
        self._micro = False
        self._piece: Training | None = None
        self._listener: Listener | None = None
        self._guard: StepGuard | None = None
        self._manner: Any = None
        self._handle: Any = None
        self._error: Exception | None = None
        self._off = not self._rules

    # -- around the user's step ---------------------------------------------------------------------------------------

    def begin(self, index: int, batch: Any) -> None:
        """Listen to the step, if it is due or among those right before one that is."""
        self._index, self._pending, self._micro = index, [batch], False
        self._piece = None
        if self._off or -index % self._every >= _WINDOW:
            return
        try:
            self._set_up(batch)
        except Exception as error:
            self._error = error

    def _set_up(self, batch: Any) -> None:
        model = self._model = unwrap(self._given)
        self._compiled = is_compiled(self._given)
        self._piece = Training()
        self._manner = None
        if not self._compiled:
            self._listener = Listener(model, self._optimizers, self._piece, on_error=self._note_error)
            self._listener.attach()
        if self._index % self._every == 0:
            if calls_eagerly(self._given):
                self._handle = self._given.register_forward_pre_hook(self._note_manner)
            if self._flowing is not None:
                self._flowing.index = 0
                guard = self._flowing.step(batch)
                guard.__enter__()
                self._guard = guard

    def _note_error(self, error: Exception) -> None:
        self._error = self._error or error

    def _note_manner(self, *_: Any) -> None:
        if self._manner is None:
            devices = {tensor.device.type for tensor in self._model.parameters()}
            self._manner = [(module, module.training) for _, module in walk(self._model)], autocast_now(devices)

    def micro_batch(self, batch: Any) -> None:
        """Take one of several batches in place of what the step was given."""
        self._pending = [*self._pending, batch] if self._micro else [batch]
        self._micro = True
        if self._guard is not None:
            try:
                self._guard.add(batch, None)
            except Exception as error:
                self._note_error(error)

    def end(self, error: BaseException | None) -> None:
        """Take the hooks off, and keep what was heard if the step went well."""
        if self._handle is not None:
            self._handle.remove()
        if self._listener is not None:
            self._listener.detach()
        guard, self._guard, self._handle, listener, self._listener = self._guard, None, None, self._listener, None
        if guard is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a probe that cannot read this model leaves its rules silent
                    guard.__exit__(type(error) if error is not None else None, error, None)
            except Exception as wrong:
                self._note_error(wrong)
        if error is not None:
            self._pieces.clear()
            return
        if not self._off:
            try:
                self._keep(listener)
            except Exception as wrong:
                self._note_error(wrong)

    def _keep(self, listener: Listener | None) -> None:
        for batch in self._pending:
            shapes = [tensor.shape for tensor in tensors(batch) if tensor.ndim]
            if shapes:
                self._sizes[shapes[0][0]] += 1
        if self._piece is None:
            return
        if self._last_heard != self._index - 1:
            self._pieces.clear()
        self._last_heard = self._index
        if listener is not None:
            listener.step_ended()
        if not finite(tensors(self._pending)):
            self._piece.batch_broken = 0
        for piece in self._pieces:
            piece.inputs = None  # the last step's will do
        self._pieces.append(self._piece)
        self._batches.extend(self._pending)

    def read(self) -> None:
        """Judge, and tell what is new. An exception in a rule switches it off."""
        if self._off:
            return
        fresh: list[Finding] = []
        failed: dict[str, list[str]] = {}
        if self._error is None and self._index % self._every == 0:
            try:
                fresh, failed = self._judge()
            except Exception as error:
                self._error = error
        if self._error is not None:
            failed = {_words(self._error): [rule.CODE for rule in self._rules]}
            self._pieces.clear()
            self._batches.clear()
        off = {code: why for why, codes in failed.items() for code in codes}
        self._not_run |= off
        self._rules = [rule for rule in self._rules if rule.CODE not in off]
        self._off = not self._rules
        for why, codes in failed.items():
            self._warn(f"{_listed(codes)} failed at step {self._index}, switched off; training goes on: {why}", True)
        for finding in fresh:
            at = f", at {_listed(finding.places)}" if any(finding.places) else ""
            self._warn(f"{finding.code} {finding.slug} at step {self._index}: {finding.message}{at}", False)

    @staticmethod
    def _warn(text: str, failed: bool) -> None:
        warnings.warn(text, RuleWarning if failed else FindingWarning, stacklevel=4)  # the user's with statement

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self) -> tuple[list[Finding], dict[str, list[str]]]:
        fresh: list[Finding] = []
        failed: dict[str, list[str]] = {}
        waiting = rank_of_many() is not None and any(_waits(module) for module in self._model.modules())
        case = Case(self._model, self._loss_fn, _Recent(self._batches, _WAITING if waiting else ""))
        if self._optimizers:
            case.optimizer = _Groups(self._optimizers)  # type: ignore[assignment]
        with self._apart(case), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evidence = Evidence(
                case,
                batches=len(self._batches),
                training=self._heard(case),
                sizes=self._sizes,
                no_flow=_WAITING if waiting else "",
            )
            for rule in self._rules:
                if self._compiled and "loop" in rule.NEEDS:
                    self._not_run[rule.CODE] = _COMPILED
                    continue
                try:
                    found = list(rule.examine(evidence))
                except NonFiniteError as error:
                    self._unmeasured[rule.CODE] = str(error)
                except NotShownError as error:
                    self._not_run[rule.CODE] = str(error)
                except Exception as error:
                    failed.setdefault(_words(error), []).append(rule.CODE)
                else:
                    self._unmeasured.pop(rule.CODE, None)
                    self._not_run.pop(rule.CODE, None)
                    fresh += [finding for finding in found if self._is_new(finding, case)]
        return fresh, failed

    @contextmanager
    def _apart(self, case: Case) -> Iterator[None]:
        """Have the model compute as in the user's own pass, on buffers of its own and without the user's hooks."""
        modes, autocast = self._manner or ([], [])
        with ExitStack() as stack:
            stack.enter_context(sandbox(case))
            stack.enter_context(no_global_hooks())
            stack.enter_context(eagerly(self._compiled))
            buffers: dict[int, torch.Tensor] = {}
            for _, module in walk(self._model):
                silence(module)
                for key, buffer in module._buffers.items():
                    if buffer is not None:  # the user's own are not written to: a graph of theirs may hold them
                        module._buffers[key] = buffers.setdefault(id(buffer), buffer.detach().clone())
            for module, mode in modes:
                module.training = mode
            stack.enter_context(autocasting(autocast))
            stack.enter_context(torch.enable_grad())
            yield

    def _heard(self, case: Case) -> Training:
        """Join what was heard; of a compiled model nothing was, and its passes are repeated as they are written."""
        if self._compiled:
            whole = Training()
            with sandbox(case):
                listener = Listener(self._model, [], whole)
                try:
                    listener.attach()
                    for batch in list(case.loader)[-_WINDOW:]:
                        with users_code("the loss of a recent batch"):
                            self._loss_fn(self._model, batch)
                        listener.step_ended()
                finally:
                    listener.detach()
            for call in whole.calls:
                call.update = call.step
        else:
            whole = joined(self._pieces, counted=bool(self._optimizers))
        whole.records = self._flowing.drain() if self._flowing is not None else []
        return whole

    def _is_new(self, finding: Finding, case: Case) -> bool:
        reason = case.ignored(finding.code, finding.places)
        if reason:
            self._ignored.setdefault((finding.code, finding.places), (finding, reason))
            return False
        known = [old for old in self._found if old.code == finding.code and set(old.places) & set(finding.places)]
        places = tuple(dict.fromkeys(place for one in (*known, finding) for place in one.places))
        steps = {
            "first_step": min((old.details["first_step"] for old in known), default=float(self._index)),
            "last_step": float(self._index),
            "readings": 1 + max((old.details["readings"] for old in known), default=0.0),
        }
        self._found = [old for old in self._found if old not in known]
        self._found.append(replace(finding, places=places, details={**finding.details, **steps}))
        return not known

    def findings(self) -> Findings:
        """Return what was found so far, worst first."""
        found = sorted(self._found, key=lambda one: (one.severity.rank, one.code, one.details["first_step"]))
        return Findings(
            tuple(found),
            tuple(self._ignored.values()),
            rules=tuple(rule.CODE for rule in self._rules if rule.CODE not in self._not_run),
            unmeasured=tuple(sorted(self._unmeasured.items())),
            not_run=tuple(sorted(self._not_run.items())),
        )


class _Recent:
    """The batches of the last steps, in order, as a loader; or why no pass over them may be made."""

    def __init__(self, batches: Sequence[Any], why_not: str) -> None:
        self._batches, self._why_not = list(batches), why_not

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        if self._why_not:
            raise NotShownError(self._why_not)
        return iter(self._batches)


class _Groups:
    """The groups of all optimizers, to look at: nothing is updated, so that their state need not be kept."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.state: dict[Any, Any] = {}


def joined(pieces: Sequence[Training], *, counted: bool = True) -> Training:
    """Return consecutive steps, each heard by itself, as one training of so many steps.

    Args:
        pieces: The steps.
        counted: Whether updates were counted; else each step is taken for one.
    """
    whole = Training()
    forwards = 0
    for step, piece in enumerate(pieces):
        for call in piece.calls:
            update = whole.updates + call.update if counted else step
            forward = call.forward and forwards + call.forward
            whole.calls.append(replace(call, step=step, update=update, order=len(whole.calls), forward=forward))
        forwards += max((call.forward for call in piece.calls), default=0)
        whole.updates += piece.updates if counted else 1
        whole.call_logs += piece.call_logs
        whole.losses += piece.losses
        whole.steps += 1
        whole.inputs = piece.inputs or whole.inputs
        if whole.broken is None and piece.broken is not None:
            whole.broken = (piece.broken[0], step)
        if whole.batch_broken is None and piece.batch_broken is not None:
            whole.batch_broken = step
    return whole


def refuse(select: str | Sequence[str]) -> None:
    """Say what is wrong with a choice of rules before anything is made.

    Raises:
        UsageError: A code fits no rule, or no rule that it fits can run while training.
    """
    _runnable(chosen(_prefixes(select)))


def _prefixes(select: str | Sequence[str]) -> list[str] | None:
    wanted = [select] if isinstance(select, str) else list(select)
    if not wanted or not all(isinstance(one, str) and one for one in wanted):
        raise UsageError('rules must be "all", or codes, names or beginnings of codes, such as "NS1" or ["NS104"]')
    return None if wanted == ["all"] else wanted


def _runnable(rules: Sequence[AbstractRule]) -> tuple[list[AbstractRule], dict[str, str]]:
    """Part rules into those that can run while training and, by code, why others cannot."""
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
