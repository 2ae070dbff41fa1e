"""A recorder attached to a training loop by the hooks of its optimizers and of its model, in no line of the loop."""

import gc
from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normscope.modules.hooks import Hook, call_new_hooks
from normscope.modules.tree import walk
from normscope.modules.wrapped import calls_eagerly, is_compiled, unwrap
from normscope.probes._recorder import Recorder
from normscope.probes._warnings import ProbeWarning
from normscope.usercode import described, warn_user

_MANY_STEPS = 200  # of other optimizers, without one of the watched: more than any schedule of several networks


class _Holder:
    """A hook of an optimizer that does nothing but hold an attachment."""

    def __init__(self, attachment: "Attachment") -> None:
        self._attachment = attachment

    def __call__(self, *_: Any) -> None:
        """Do nothing."""


# Hooks for all optimizers: while torch calls those of a single optimizer none of them can be removed, which is what
# probes do as a step ends. They hold no attachment, so that a model that nobody needs any more can go.
_attachments: "WeakSet[Attachment]" = WeakSet()
_hooks_of_all: list[Any] = []
_numbers = count()


def _listen(attachment: "Attachment") -> None:
    _attachments.add(attachment)
    if not _hooks_of_all:
        _hooks_of_all.append(register_optimizer_step_pre_hook(_before_any_step))
        _hooks_of_all.append(register_optimizer_step_post_hook(_after_any_step))


def _listen_no_more(attachment: "Attachment") -> None:
    _attachments.discard(attachment)
    if not _attachments:
        for handle in _hooks_of_all:
            handle.remove()
        _hooks_of_all.clear()


def _before_any_step(optimizer: Optimizer, *_: Any) -> None:
    idle = [each.number for each in sorted(_attachments, key=lambda each: each.number) if each.before_step(optimizer)]
    if idle:
        gc.collect()  # a training that nobody needs any more is waiting for nothing
        for number in idle:
            for attachment in [each for each in _attachments if each.number == number]:
                attachment.tell_idleness()


def _after_any_step(optimizer: Optimizer, *_: Any) -> None:
    for attachment in sorted(_attachments, key=lambda each: each.number):
        attachment.after_step(optimizer)


class Attachment:
    """Begins and ends the steps of a recorder as the loop runs.

    A step begins at the first forward pass, of the model or of a module in it, that records gradients after the last
    update. It ends when the optimizer has stepped: every optimizer of the recorder, or one of them for the second time.
    At steps at which nothing is due only the optimizer's hooks are called.

    Without optimizers the recorder takes up each optimizer that makes an update and holds parameters of the model.

    Args:
        recorder: The recorder.

    Attributes:
        number: How many were made before: of several, the first is told of a step first.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.number = next(_numbers)
        self._handles: list[Any] = []
        self._armed: list[Any] = []
        self._stepped: set[int] = set()
        self._trains_in_train_mode = False
        self._heard_anything = False
        self._failed = False
        self._strangers: WeakValueDictionary[int, Optimizer] = WeakValueDictionary()
        self._steps_of_strangers = 0
        self._has_stepped = False
        self._was_given_optimizers = bool(recorder.optimizers)
        for optimizer in recorder.optimizers:
            if not isinstance(optimizer, Optimizer):
                recorder.note_wiring(
                    f"{type(optimizer).__name__} has no hooks by which the end of a step could be heard: use "
                    "`with scope.step(batch)`, or scope.begin() and scope.end()"
                )
        for optimizer in recorder.optimizers:
            self._be_held_by(optimizer)
        _listen(self)
        recorder.attached = True
        self._arm()

    def _be_held_by(self, optimizer: Any) -> None:
        """Live as long as an optimizer does: nothing else need hold what ``ns.watch`` has returned."""
        if isinstance(optimizer, Optimizer):
            self._handles.append(optimizer.register_step_post_hook(_Holder(self)))

    def detach(self) -> None:
        """Remove all hooks; a step that is under way is given up."""
        _listen_no_more(self)
        self._disarm()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._recorder.attached = False
        if self._recorder.inside_step:
            self._recorder.end(GeneratorExit())

    # -- optimizers ---------------------------------------------------------------------------------------------------

    def _is_watched(self, optimizer: Optimizer) -> bool:
        """Whether the recorder has this optimizer; if it was given none, it takes up those of the model."""
        recorder = self._recorder
        if self._failed or id(optimizer) in self._strangers:
            return False
        if any(optimizer is known for known in recorder.optimizers):
            return True
        updates = self._updates_the_model(optimizer)
        if updates and not self._was_given_optimizers:
            recorder.adopt(optimizer)
            self._be_held_by(optimizer)
            return True
        self._strangers[id(optimizer)] = optimizer
        if updates:
            recorder.note_wiring(
                f"an optimizer that the scope was not given ({type(optimizer).__name__}) updates the model, and its "
                "steps are not counted: give ns.watch all optimizers of the model"
            )
        return False

    def _updates_the_model(self, optimizer: Optimizer) -> bool:
        own = {id(parameter) for parameter in self._recorder.model.parameters()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def tell_idleness(self) -> None:
        """Warn that the loop steps other optimizers than those that are watched."""
        own = ", ".join(dict.fromkeys(type(known).__name__ for known in self._recorder.optimizers))
        self._recorder.note_wiring(
            f"{_MANY_STEPS} steps of other optimizers have passed and none of the watched ({own}): give ns.watch the "
            "optimizer that the loop steps, or call scope.detach()"
        )

    def before_step(self, optimizer: Optimizer) -> bool:
        """Note that an optimizer begins its step.

        Returns:
            Whether many optimizers' steps have passed by now, and none of the watched.
        """
        if not self._is_watched(optimizer):
            self._steps_of_strangers += 1
            waits = self._was_given_optimizers and not (self._failed or self._has_stepped)
            return waits and self._steps_of_strangers == _MANY_STEPS
        self._has_stepped = True
        if id(optimizer) in self._stepped:  # another optimizer of the recorder steps more rarely than this one
            self._finish()
        self._recorder.set_updating(True)
        return False

    def after_step(self, optimizer: Optimizer) -> None:
        """Note that an optimizer has ended its step."""
        if not self._is_watched(optimizer):
            return
        self._recorder.set_updating(False)
        self._stepped.add(id(optimizer))
        if all(id(known) in self._stepped for known in self._recorder.optimizers):
            self._finish()

    def _finish(self) -> None:
        recorder = self._recorder
        self._stepped.clear()
        if recorder.inside_step:
            with torch.enable_grad():
                self._try(recorder.end)
        else:
            if recorder.wants(recorder.index) and not self._heard_anything:
                recorder.note_wiring(
                    f"the model that is watched ({type(recorder.model).__name__}) did not run before the optimizer "
                    "stepped: give ns.watch the model that the loop calls"
                )
            recorder.skip()
        if not self._failed:
            self._arm()

    # -- the model ----------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have the next forward pass begin a step, if anything is due at it."""
        self._disarm()
        recorder = self._recorder
        if recorder.wants(recorder.index):
            for module in self._modules():
                self._armed.append(module.register_forward_pre_hook(Hook(self._first_forward), with_kwargs=True))

    def _modules(self) -> list[Module]:
        recorder = self._recorder
        model = recorder.model
        if not is_compiled(model):
            return [module for _, module in walk(unwrap(model))]
        if calls_eagerly(model):  # a hook inside would have the model compiled anew
            return [model]
        recorder.note_wiring(
            "calls of a model that was compiled in place cannot be heard: use `with scope.step(batch)`, or "
            "scope.begin(batch) and scope.end()"
        )
        return []

    def _disarm(self) -> None:
        for handle in self._armed:
            handle.remove()
        self._armed.clear()
        Hook.clear_copies()

    def _first_forward(self, module: Module, args: Any, kwargs: Any) -> None:
        recorder = self._recorder
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1 or recorder.inside_step:
            return
        if self._trains_in_train_mode and not module.training:
            return  # an evaluation that records gradients
        self._trains_in_train_mode |= module.training
        self._heard_anything = True
        self._disarm()
        known = set(module._forward_pre_hooks)
        self._try(recorder.begin)
        call_new_hooks(module, known, args, kwargs)

    def _try(self, act: Callable[[], None]) -> None:
        """Begin or end a step; an error that no probe answers for ends the watching, not the training."""
        try:
            act()
        except Warning:  # the user has warnings raised
            raise
        except Exception as error:
            self._failed = True  # hooks cannot be removed while torch calls them
            self._disarm()
            self._recorder.give_up(f"the scope failed at step {self._recorder.index}: {described(error)}")
            warn_user(
                f"the scope failed at step {self._recorder.index} and watches no further; training goes on: "
                f"{described(error)}",
                ProbeWarning,
            )
