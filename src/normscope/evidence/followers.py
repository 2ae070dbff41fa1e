"""What holds a model's parameters or copies of it, and how it follows when norms of the model are changed."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter, TransformerEncoder, TransformerEncoderLayer
from torch.optim import LBFGS, Optimizer

from normscope.surgery import ArmReport, norm_sites

Named = Iterable[tuple[str, Any]]


def parameters_by_site(model: Module) -> dict[str, dict[str, Parameter]]:
    """Return the parameters of each norm of a model by the norm's path; all others under ``""``."""
    found: dict[str, dict[str, Parameter]] = {
        site.path: dict(site.module.named_parameters()) for site in norm_sites(model)
    }
    inside = {id(parameter) for held in found.values() for parameter in held.values()}
    found[""] = {name: p for name, p in model.named_parameters() if id(p) not in inside}
    return found


def follow_parameters(
    model: Module, before: Mapping[str, Mapping[str, Parameter]], objects: Named, containers: Named
) -> list[str]:
    """Have optimizers and lists of parameters hold what the model has now.

    Args:
        model: The model, changed.
        before: Its parameters as of ``parameters_by_site`` before.
        objects: What may be an optimizer.
        containers: Lists, some of which may be of parameters.

    Returns:
        What was done, in words.
    """
    now = {id(p): (name, p) for name, p in model.named_parameters()}
    old = {id(p): (path, name) for path, held in before.items() for name, p in held.items()}
    gone = {key for key in old if key not in now and old[key][0]}
    fresh = {key: value for key, value in now.items() if key not in old}
    kin = {key: _kin(name, before) for key, (name, _) in fresh.items()}
    lists: dict[int, tuple[str, list[Any], list[Any] | None]] = {}
    optimizers = list({id(each): each for _, each in objects if _is_optimizer(each)}.values())
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            lists[id(group["params"])] = (f"group {index}", group["params"], group.get("param_names"))
    for name, container in containers:
        if isinstance(container, list) and any(isinstance(item, Parameter) for item in container):
            lists.setdefault(id(container), (name, container, None))
    counts: Counter[str] = Counter()
    for _, held, names in lists.values():
        counts.update(_follow(held, names, gone, fresh, kin))
    for optimizer in optimizers:
        for parameter in [p for p in optimizer.state if id(p) in gone]:
            del optimizer.state[parameter]
        if isinstance(optimizer, LBFGS) and (gone or fresh):  # its history is of one vector of all values
            optimizer.state.clear()
            optimizer._numel_cache = None
    placed = {id(p) for _, held, _ in lists.values() for p in held}
    homeless = [name for key, (name, p) in fresh.items() if key not in placed and p.requires_grad]
    notes = [f"{count} parameters of norms {what} optimizers' groups" for what, count in sorted(counts.items())]
    if homeless and optimizers:
        notes.append(f"in no optimizer, as the norms were not: {', '.join(homeless[:4])}{' ...' * (len(homeless) > 4)}")
    return notes


def still_held(model: Module, norms: Mapping[Module, str], containers: Named) -> list[str]:
    """Say which lists and dictionaries hold norms that are no longer in the model, as a step that freezes norms may.

    Args:
        model: The model, changed.
        norms: Its norms before, with their paths.
        containers: What may hold them.
    """
    gone = norms.keys() - set(model.modules())
    notes = []
    for name, container in containers:
        items = container.values() if isinstance(container, dict) else container
        held = [norms[item] for item in items if isinstance(item, Module) and item in gone]
        if held:
            notes.append(
                f"{name} holds norms that are out of the model now ({held[0]} ...): what is done to them is lost"
            )
    return notes


def copies_of(model: Module, objects: Named) -> list[tuple[str, str, Module]]:
    """Return the modules that are copies of a model, or of a part of it that has norms.

    A copy has the same classes under the same names and the same values, bit for bit, as averaged weights and teachers
    have at the beginning.

    Returns:
        For each its name, the path of the part of the model that it is a copy of, and the copy.
    """
    inside = set(model.modules())
    named = [(name, each) for name, each in objects if isinstance(each, Module)]
    outside = {type(inner) for _, each in named for inner in each.modules() if inner not in inside}
    parts: dict[Any, list[tuple[str, Module]]] = {}
    for path, module in model.named_modules():
        if type(module) in outside and any(site.slots for site in norm_sites(module)):
            parts.setdefault(_form(module), []).append((path, module))
    found: list[tuple[str, str, Module]] = []
    taken: set[Module] = set()
    for name, each in named:
        for inner, module in each.named_modules():
            if module in inside or module in taken:
                continue
            alike = parts.get(_form(module), [])
            path = next((path for path, part in alike if _same_values(module, part)), None)
            if path is not None:
                taken.update(module.modules())
                found.append((".".join(filter(None, (name, inner))), path, module))
    return found


def follow_copies(model: Module, copies: Sequence[tuple[str, str, Module]], report: ArmReport) -> list[str]:
    """Give copies of a model the norms and weights that the model has now; return what was done, in words."""
    changed = {change.path for change in report.changes}
    notes = []
    for name, path, twin in copies:
        part = model.get_submodule(path)
        learns = any(p.requires_grad for p in twin.parameters())
        prefix = f"{path}." if path else ""
        for site in norm_sites(twin):
            if prefix + site.path in changed:
                new = copy.deepcopy(_at(model, prefix + site.path))
                if not learns:
                    new.requires_grad_(False)
                new.train(site.module.training)
                site.replace(new)
        for mine, theirs in zip(twin.modules(), part.modules(), strict=True):
            if isinstance(theirs, (TransformerEncoder, TransformerEncoderLayer)):
                for flag in ("activation_relu_or_gelu", "use_nested_tensor"):
                    if hasattr(theirs, flag):
                        setattr(mine, flag, getattr(theirs, flag))
        twin.load_state_dict(part.state_dict())
        notes.append(f"{name} is a copy of {path or 'the model'} and follows it")
    return notes


def _follow(
    held: list[Any], names: list[Any] | None, gone: set[int], fresh: Mapping[int, tuple[str, Parameter]],
    kin: Mapping[int, set[int]],
) -> Counter[str]:  # fmt: skip
    """Drop from a list, in place, what went, and add what came in the place of something that the list has or had."""
    had = {id(item) for item in held}
    added = [(name, p) for key, (name, p) in fresh.items() if kin[key] & had and p.requires_grad]
    keep = [index for index, item in enumerate(held) if id(item) not in gone]
    counts = Counter({"dropped from": len(held) - len(keep), "added to": len(added)})
    if names is not None:
        names[:] = [*(names[index] for index in keep), *(name for name, _ in added)]
    held[:] = [*(held[index] for index in keep), *(p for _, p in added)]
    return +counts


def _kin(name: str, before: Mapping[str, Mapping[str, Parameter]]) -> set[int]:
    """Return the parameters of the norm in whose place a new parameter came: of the same name, or else all."""
    paths = [path for path in before if path and name.startswith(f"{path}.")]
    if not paths:
        return set()
    site = before[max(paths, key=len)]
    last = name.rpartition(".")[2]
    return {id(p) for key, p in site.items() if key.rpartition(".")[2] == last} or {id(p) for p in site.values()}


def _is_optimizer(each: Any) -> bool:
    return isinstance(each, Optimizer) or (hasattr(each, "param_groups") and hasattr(each, "step"))


def _form(module: Module) -> tuple[Any, ...]:
    return tuple((name, type(inner)) for name, inner in module.named_modules())


def _same_values(a: Module, b: Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(
        isinstance(theirs[key], Tensor) and value.shape == theirs[key].shape and torch.equal(value, theirs[key])
        for key, value in mine.items()
        if isinstance(value, Tensor)
    )


def _at(model: Module, path: str) -> Module:
    found: Any = model
    for key in path.split("."):
        if isinstance(found, (list, tuple)):
            found = found[int(key)]
        elif isinstance(found, dict):
            found = found[key]
        else:
            found = getattr(found, key)
    return found
