"""What a check says of a set-up, whether it leaves a trace, and what its fixes do to the loss."""

import copy
import math
import random
import time
import traceback
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

import normscope as ns

from .kit import SetUp, train

Row = dict[str, Any]


def measured(set_up: SetUp, fixes: bool = True, seed: int = 0) -> Row:
    """Return what a check of a set-up finds and costs, as JSON values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        case, extra = set_up.make(seed)
        row: Row = {"name": set_up.name, "made": time.perf_counter() - started, "stale": stale(case)}
        before = state(case, extra)
        started, cpu = time.perf_counter(), time.process_time()
        try:
            found = ns.check(case)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            row["abort"] = (
                f"{type(error).__name__}: {str(error)[:300]} ({where.filename.split('/')[-1]}:{where.lineno})"
            )
            found = ()
        row["seconds"], row["cpu"] = time.perf_counter() - started, time.process_time() - cpu
        row["trace"] = [name for name, value in state(case, extra).items() if not alike(value, before[name])]
        row["findings"] = [
            {
                "code": each.code, "severity": each.severity.value, "message": each.message, "cost": each.cost,
                "fix": each.fix, "places": list(each.places),
            }
            for each in found
        ]  # fmt: skip
        row["unmeasured"] = [list(pair) for pair in getattr(found, "unmeasured", ())]
        gap = getattr(found, "gap", None)
        row["gap"] = {share.cause: round(share.loss, 4) for share in gap.shares} if gap else {}
        row["fixes"] = [fixed(set_up, each, seed) for each in found if each.fixable] if fixes else []
    return row


def state(case: ns.Case, extra: list[Any]) -> dict[str, Any]:
    """Return by name everything that a check must leave as it was."""
    held: dict[str, Any] = {
        "torch's random stream": torch.get_rng_state(),
        "Python's random stream": random.getstate(),
        "NumPy's random stream": repr(np.random.get_state()),  # noqa: NPY002
    }
    averaged = [case.averaged] if case.averaged is not None else []
    for k, each in enumerate([case.model, case.optimizer, *averaged, *extra]):
        name = f"{k} {type(each).__name__}"
        if isinstance(each, nn.Module):
            held[name] = copy.deepcopy(each.state_dict())
            held[f"{name}, gradients"] = [None if p.grad is None else p.grad.clone() for p in each.parameters()]
            held[f"{name}, modes"] = [module.training for module in each.modules()]
            held[f"{name}, hooks"] = [
                len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                for module in each.modules()
            ]
        elif isinstance(each, torch.optim.Optimizer):
            held[name] = copy.deepcopy(each.state_dict())
    return held


def alike(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def losses(case: ns.Case, model: nn.Module | None = None, most: int = 16) -> list[float]:
    """Return the loss of each evaluation batch (of training where there are none), in eval mode."""
    model = case.model if model is None else model
    modes = [(module, module.training) for module in model.modules()]
    loss_fn = case.eval_loss_fn or case.loss_fn
    found = []
    model.eval()
    try:
        for k, batch in enumerate(case.eval_loader or case.loader):
            if k == most:
                break
            torch.manual_seed(k)
            found.append(float(loss_fn(model, batch).detach()))
    finally:
        for module, mode in modes:
            module.training = mode
    model.zero_grad(set_to_none=True)
    return found


def stale(case: ns.Case) -> float | None:
    """Return how much loss evaluation has more than with statistics taken anew by torch's own ``update_bn``."""
    norms = [
        m for m in case.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if case.eval_loader is None or not norms:
        return None
    random_state = torch.get_rng_state()
    model = copy.deepcopy(case.model)
    try:
        before = losses(case, model)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.training:
                module.reset_running_stats()
                module.momentum = None
        for batch in case.loader:
            case.loss_fn(model, batch)
        return float(np.mean(before) - np.mean(losses(case, model)))
    except Exception:
        return None
    finally:
        torch.set_rng_state(random_state)
        case.model.zero_grad(set_to_none=True)


def fixed(set_up: SetUp, finding: Any, seed: int = 0) -> Row:
    """Return what a fix does to the loss of evaluation, at once and after 20 further steps of both."""
    row: Row = {"code": finding.code, "severity": finding.severity.value}
    plain, _ = set_up.make(seed)
    case, _ = set_up.make(seed)
    try:
        before = both(plain)
    except Exception as error:
        return {**row, "why_not": f"without eval_loss_fn there is no loss to compare: {error}"}
    try:
        done = ns.fix(case, [finding], unsafe=True)
    except Exception as error:
        return {**row, "abort": f"fix: {type(error).__name__}: {str(error)[:300]}"}
    row |= {"done": done[0].done, "why_not": done[0].why_not}
    if not done[0].done:
        return row
    try:
        row["at_once"] = rise(before, both(case))
        row["later"] = later(plain, case)
    except Exception as error:
        row["abort"] = f"after the fix: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def later(plain: ns.Case, case: ns.Case) -> list[float]:
    """Return the rise of the loss after further steps; of nothing where the set-up that was not repaired raises."""
    try:
        torch.manual_seed(1)
        further(plain)
    except Exception:
        return [0.0, 0.0, float("nan")]
    torch.manual_seed(1)
    further(case)
    return rise(both(plain), both(case))


def both(case: ns.Case) -> list[list[float]]:
    """Return the losses of the model and of the averaged model."""
    models = [case.model] + ([case.averaged] if case.averaged is not None else [])
    return [losses(case, model) for model in models]


def rise(before: list[list[float]], after: list[list[float]]) -> list[float]:
    """Return the largest rise of a loss, its standard error over batches, and the loss before."""
    found = []
    for a, b in zip(before, after, strict=True):
        count = min(len(a), len(b))
        change = np.subtract(b[:count], a[:count])
        if not np.isfinite(a).all() and np.isfinite(b).all():
            change = np.zeros(count)
        error = float(change.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0
        found.append([float(change.mean()), error, float(np.mean(a))])
    return max(found, key=lambda row: row[0] if row[0] == row[0] else math.inf)


def further(case: ns.Case, steps: int = 20) -> None:
    """Train on."""
    if case.step is None and case.optimizer is not None:
        train(case.model, case.loss_fn, case.loader, case.optimizer, steps, floor=1.0)
    elif case.step is not None:
        made = 0
        while made < steps:
            for batch in case.loader:
                case.step(case.model, batch)
                made += 1
                if made == steps:
                    break


def harmful(fix: Row) -> bool:
    """Whether the loss rises beyond noise: three standard errors and a hundredth, or a fiftieth of the loss."""
    if "at_once" not in fix:
        return False
    change, error, before = fix["at_once"]
    return not change <= max(3 * error, 0.01, 0.02 * abs(before))


def persistent(fix: Row) -> bool:
    """Whether the loss is still higher after 20 further steps of both."""
    return harmful(fix) and ("later" not in fix or harmful({"at_once": fix["later"]}))
