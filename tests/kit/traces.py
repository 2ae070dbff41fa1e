"""What code leaves behind in models, optimizers and the process, compared bit for bit.

Written without normscope, as an oracle for its claim to leave no trace. A fingerprint walks everything that can be
reached from its roots by attributes, items and elements: not a list of places where a trace is expected.
"""

import random
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from weakref import ReferenceType

import numpy as np
import torch
from torch.nn.modules import module as torch_module

_ATOMS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, torch.layout)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)


def fingerprint(*, identities=False, **roots):
    """Return {path: leaf} of everything that can be reached from the roots, and of the state of the process.

    Args:
        identities: Whether to note which objects the tensors are, where they lie in memory, and how often they were
            written to; compare such fingerprints only with others of the same objects.
        **roots: The objects, by the names at which their paths begin.
    """
    found, seen = {}, {}
    for name, root in roots.items():
        _walk(name, root, found, seen, identities)
    found |= _process()
    return found


def differences(before, after):
    """Name every path at which two fingerprints differ, in order."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path, ...) != after.get(path, ...))


def _process():
    state = {
        "torch's stream": torch.get_rng_state().numpy().tobytes(),
        "NumPy's stream": str(np.random.get_state()[1:3]) + np.random.get_state()[1].tobytes().hex(),  # noqa: NPY002
        "Python's stream": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_initialized():
        state["CUDA's streams"] = [stream.numpy().tobytes() for stream in torch.cuda.get_rng_state_all()]
    for name, hooks in vars(torch_module).items():
        if name.startswith("_global_") and hasattr(hooks, "__len__"):
            state[name] = len(hooks)
    return {f"process: {key}": value for key, value in state.items()}


def _walk(path, value, found, seen, identities):
    if isinstance(value, _ATOMS):
        found[path] = (type(value).__name__, value.hex() if isinstance(value, float) else value)
        return
    if isinstance(value, _CODE):
        found[path] = getattr(value, "__qualname__", str(value))
        return
    if isinstance(value, ReferenceType):
        return
    if id(value) in seen:
        found[path] = f"the same as {seen[id(value)][0]}"
        return
    seen[id(value)] = path, value  # held, so that its id is not given to another object
    if identities and not isinstance(value, (tuple, frozenset)):
        found[f"{path} is"] = id(value)
    if isinstance(value, torch.Tensor):
        _tensor(path, value, found, identities)
    elif isinstance(value, torch.Generator):
        found[path] = value.get_state().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        found[path] = (value.dtype.str, value.shape, value.tobytes())
    elif isinstance(value, Mapping):
        found[path] = (type(value).__name__, len(value), [key for key in value if isinstance(key, str)])
        handles = path.endswith("hooks")  # keys are numbers of handles, counted through the whole process
        for index, (key, item) in enumerate(value.items()):
            named = isinstance(key, (str, int, float, bool)) and not handles
            _walk(f"{path}[{key if named else index!r}]", item, found, seen, identities)
    elif isinstance(value, (list, tuple, deque)):
        found[path] = (type(value).__name__, len(value))
        for index, item in enumerate(value):
            _walk(f"{path}[{index}]", item, found, seen, identities)
    elif isinstance(value, (set, frozenset)):
        found[path] = (type(value).__name__, sorted(map(id if identities else repr, value)))
        return
    else:
        found[f"{path} is a"] = type(value).__qualname__
    _attributes(path, value, found, seen, identities)


def _tensor(path, tensor, found, identities):
    plain = tensor.detach()
    if plain.layout != torch.strided:
        plain = plain.coalesce().to_dense()
    content = plain.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
    found[path] = (type(tensor).__name__, tensor.dtype, tuple(tensor.shape), content)
    found[f"{path} asks for"] = (tensor.requires_grad, tensor.is_leaf)
    if tensor.layout == torch.strided:
        found[f"{path} lies"] = (tensor.stride(), tensor.storage_offset())
    for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if count := len(getattr(tensor, kind, None) or ()):
            found[f"{path}.{kind}"] = count
    if identities:
        found[f"{path} written to"] = tensor._version
        found[f"{path} at"] = tensor.data_ptr() if tensor.layout == torch.strided else 0
    if tensor.is_leaf:
        if tensor.grad is None:
            found[f"{path}.grad"] = None
        else:
            _tensor(f"{path}.grad", tensor.grad, found, identities)
            if identities:
                found[f"{path}.grad is"] = id(tensor.grad)


def _attributes(path, value, found, seen, identities):
    for key, item in sorted(getattr(value, "__dict__", {}).items()):
        _walk(f"{path}.{key}", item, found, seen, identities)
