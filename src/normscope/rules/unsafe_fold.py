"""A fold of norms into weights that changed the function."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normscope.evidence import (
    Case,
    Deployed,
    Evidence,
    Finding,
    Severity,
    example,
    examples,
    exported_anew,
    sandbox,
    set_mode,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import fold
from normscope.surgery.absorb import deviation, widened
from normscope.surgery.pairs import Pair

_BOUND = 1e-4
_ORDERS: tuple[Literal["before", "after"], ...] = ("before", "after")


class _TwoUsers(nn.Module):
    """A convolution whose output goes to its norm and, past it, to the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((torch.relu(self.norm(x)) + x).mean((2, 3)))


def _transposed() -> nn.Module:
    """A transposed convolution of as many channels in as out: the wrong axis fits."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _norm_first() -> nn.Module:
    """A norm before a convolution that pads with zeros."""
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), _head()
    )


def _head() -> nn.Module:
    return nn.Linear(8, 4)


def _folded(net: Any, norm: str, linear: str, how: str, *, shape: tuple[int, ...] = (3, 8, 8)) -> Case:
    """Fold one norm as tools do that look at neighbours alone."""
    case = examples.healthy(net, shape=shape)
    model: Any = copy.deepcopy(case.model).eval()
    bn, layer = model.get_submodule(norm), model.get_submodule(linear)
    s = bn.weight / (bn.running_var + bn.eps).sqrt()
    t = bn.bias - s * bn.running_mean
    with torch.no_grad():
        if how == "after":
            layer.bias += (layer.weight.flatten(2).sum(2) * t).sum(1)
            layer.weight *= s.view(1, -1, 1, 1)
        else:
            s = s if how != "eps" else bn.weight / (bn.running_var + 0.1).sqrt()
            layer.weight *= s.view(-1, *[1] * (layer.weight.ndim - 1))
            layer.bias = nn.Parameter(t + (0 if layer.bias is None else s * layer.bias))
    parent, _, name = norm.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    case.exported = model
    return case


def _well(net: Any, *, half: bool = False) -> Case:
    case = examples.healthy(net)
    assert isinstance(case.loader, list)
    model = copy.deepcopy(case.model).eval()
    fold(model, case.loader[0][0])
    case.exported = model.bfloat16() if half else model
    return case


def _folded_with(error: float) -> Case:
    """A norm folded into the layer before it, with weights that are too large by this share."""
    linear, norm = examples.seeded(lambda: nn.Linear(12, 8)), examples.batch_norm(8)
    x = examples.two_values(1.0, 2.0) + torch.linspace(-1, 1, 32)[:, None]
    norm.running_mean.copy_(linear(x).mean(0).detach())
    folded: Any = nn.Sequential(copy.deepcopy(linear), nn.Identity())
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt() * (1 + error)
        folded[0].bias.sub_(norm.running_mean).mul_(scale)
        folded[0].weight.mul_(scale[:, None])
    return Case(nn.Sequential(linear, norm).train(), examples.mean_square, [x] * 4, exported=folded)


class UnsafeFold(AbstractRule):
    r"""What is deployed computes something else than the model, as after norms were folded into weights wrongly.

    ## Finds
    On the same inputs the output of what is deployed is off from the model's in eval mode by more than 1e-4 of the
    largest value. Where norms of the model have no statistics any more in it, each is held against the layer beside it,
    with the weights that are deployed: those whose pair is off are named, and those that could not be folded at all (an
    output with two users, a layer called twice). Where nothing is folded, norms are named whose values or class differ:
    what is deployed is older than the model, or its conversion has lost something. Half precision and quantized weights
    are not judged: there rounding alone is above the bound; nor is what was exported in train mode (NS128).

    Calibrated over two seeds: planted defects found, 8 of 8; false alarms on 46 healthy set-ups under eight seeds,
    0 of 368.

    ## Why it hurts
    Tools that fold by who stands next to whom fold too much: the convolution's other reader gets scaled values, a
    transposed or grouped weight is scaled along the wrong axis, a shift is moved through zero padding. The network
    loads, runs and is quietly worse.

    ## Fix
    Safe: a copy of the model is folded anew by ``surgery.fold``, which proves each pair and leaves out those that it
    cannot; it takes the place of what was deployed.
    """

    CODE = "NS119"
    SLUG = "unsafe-fold"
    SEVERITY = Severity.ERROR
    NEEDS = ("exported",)
    SAFE = True
    KEEPS = ("training", "evaluation")
    SOURCES = ("pytorch/pytorch#180995", "ultralytics/ultralytics#25364")
    SICK = (
        partial(_folded, _TwoUsers, "norm", "conv", "before"),
        partial(_folded, _transposed, "3", "2", "before"),
        partial(_folded, _norm_first, "0", "1", "after"),
        examples.Planted(partial(_folded, examples.mlp, "1", "0", "eps", shape=(12,)), ["1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_well, examples.cnn),
        partial(_well, examples.residual),
        partial(_well, examples.cnn, half=True),
    )
    NEAR = (examples.Near(_folded_with, found=1.05e-4, quiet=0.95e-4),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare what is deployed with the model, then norm by norm."""
        if evidence.case.exported is None or not evidence.tracking:
            return
        deployed = Deployed(evidence.case)
        folded = [path for path in evidence.tracking if f"{path}.running_mean" not in deployed.state]
        floats = [tensor for tensor in deployed.state.values() if tensor.is_floating_point()]
        if not floats or any(tensor.dtype.itemsize < 4 for tensor in floats):
            return
        error = _error(evidence, deployed)
        if error is None or error <= _BOUND or deployed.written_in_train_mode():
            return
        if folded:
            places = _guilty(evidence, deployed, folded) or folded
            how = (
                f"{counted(len(folded), 'norm is', 'norms are')} folded in it, of which "
                f"{counted(len(places), 'is', 'are')} at fault"
            )
        else:
            places = _other_norms(evidence, deployed)
            how = (
                f"no norm is folded in it, and {counted(len(places), 'norm is', 'norms are')} of other values or class"
            )
        yield self.finding(
            f"what is deployed is off from the model by {error:.2g} of the largest output; {how}",
            places or ("",),
            quantity="largest difference of outputs beside the largest output",
            measured=error,
            bound=_BOUND,
            cost="the deployed network is another one than the one that was trained",
            fix="fold with proof, and without the pairs that cannot be: normscope.surgery.fold(model.eval(), example)"
            if folded
            else "export the model as it is now, in eval mode",
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Put a copy of the model in the place of what was deployed, folded if that was."""
        evidence = Evidence(case)
        inputs = evidence.training.inputs
        assert inputs is not None
        model = copy.deepcopy(case.model)
        set_mode(model, False)
        was = Deployed(case).state
        folded = any(f"{path}.running_mean" not in was for path in evidence.tracking)
        report = fold(model, example(model, inputs)) if folded else None
        plain = isinstance(case.exported, nn.Module) and not isinstance(case.exported, torch.jit.ScriptModule)
        case.exported = model if plain else exported_anew(model, inputs)
        if report is None:
            return "exported the model anew: see case.exported"
        return (
            f"folded anew: {counted(len(report.done), 'norm')}, {len(report.skipped)} left as they are: see "
            "case.exported"
        )


def _error(evidence: Evidence, deployed: Deployed) -> float | None:
    case = evidence.case
    with sandbox(case), torch.no_grad(), deployed.evaluating():
        set_mode(case.model, False)
        for args, kwargs, got in deployed.calls(evidence.training.inputs):
            expected = [leaf for leaf in tree_leaves(case.model(*args, **kwargs)) if isinstance(leaf, Tensor)]
            if [one.shape for one in expected] != [one.shape for one in got]:
                return None
            pairs = zip(expected, got, strict=True)
            return max((deviation(one.double(), other.double()) for one, other in pairs), default=0.0)
    return None


def _other_norms(evidence: Evidence, deployed: Deployed) -> list[str]:
    """Return the norms that have other values, or are of another class, in what is deployed."""
    plain = (
        deployed.module is not None
        and not deployed.is_program
        and not isinstance(deployed.module, torch.jit.ScriptModule)
    )
    modules = (
        {path.removeprefix("module."): type(each) for path, each in deployed.module.named_modules()} if plain else {}
    )
    found = []
    for path, module in evidence.tracking.items():
        mine = {f"{path}.{name}": tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        same = all(
            name in deployed.state and torch.equal(tensor, deployed.state[name]) for name, tensor in mine.items()
        )
        if not same or modules.get(path, type(module)) is not type(module):
            found.append(path)
    return found


def _guilty(evidence: Evidence, deployed: Deployed, folded: list[str]) -> list[str]:
    """Return the norms whose pair is off, and those for which there is no pair."""
    found = []
    for path in folded:
        site = evidence.flow.by_path.get(path)
        pairs = [evidence.flow.pair(site, order) for order in _ORDERS] if site is not None else []
        errors = [_pair_error(pair, deployed.state) for pair in pairs if isinstance(pair, Pair)]
        if not errors or min(errors) > _BOUND:
            found.append(path)
    return found


@torch.no_grad()
def _pair_error(pair: Pair, state: dict[str, Tensor]) -> float:
    weight = state.get(f"{pair.linear.path}.weight")
    if weight is None or pair.input is None or weight.shape != pair.linear.module.weight.shape:
        return torch.inf
    x = pair.input.double()
    linear: Any = widened(pair.linear.module)
    norm = widened(pair.norm.module)
    expected = norm(linear(x)) if pair.order == "before" else linear(norm(x))
    linear.weight.copy_(weight)
    bias = state.get(f"{pair.linear.path}.bias")
    linear.bias = None if bias is None else nn.Parameter(bias.detach().double())
    return deviation(expected, linear(x))
