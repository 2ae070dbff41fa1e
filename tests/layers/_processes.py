"""What each of two or four processes does for test_synchronised: it compares its part with the whole, taken by itself.

Run as ``python _processes.py RANK SIZE RENDEZVOUS OUT [compile]``; process 0 writes the largest differences to OUT.
"""

import json
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from normscope import layers
from normscope.ops.sets import Renorm

IMPORTED = set(sys.modules)
CHANNELS = 3
SIZES = {2: [5, 1], 4: [3, 0, 6, 2]}
F64 = torch.float64


def whole_batch(sizes, offset=10.0, dtype=F64):
    generator = torch.Generator().manual_seed(5)
    n = sum(sizes)
    x, g, t = (torch.randn(n, CHANNELS, 4, generator=generator, dtype=F64) for _ in range(3))
    mask = torch.rand(n, 4, generator=generator) > 0.3
    return (offset + x * (1 + torch.arange(n).view(-1, 1, 1))).to(dtype), (g + 0.3).to(dtype), t.to(dtype), mask


def layer_pair(group, dtype=F64, **options):
    """Return a layer over the group's processes, and one for a single process, of equal state."""
    single = {k: v for k, v in options.items() if k not in ("statistics", "process_group")}
    if options.get("statistics", "sync") == "renorm":
        single["statistics"] = "renorm"
    torch.manual_seed(3)
    sync = layers.BatchNorm1d(CHANNELS, dtype=dtype, **{"statistics": "sync", "process_group": group, **options})
    if sync.weight is not None:
        nn.init.normal_(sync.weight)
        nn.init.normal_(sync.bias)
    alone = layers.BatchNorm1d(CHANNELS, dtype=dtype, **single)
    alone.load_state_dict(sync.state_dict())
    return sync, alone


def largest(a, b):
    if a.shape != b.shape:
        return float("inf")
    return float(((a - b).abs().max() / max(1.0, float(b.abs().max()))).detach()) if a.numel() else 0.0


def total(t, group):
    t = t.detach().clone()
    dist.all_reduce(t, group=group)
    return t


def check_step(group, sizes, part, *, masked=False, offset=10.0, dtype=F64, steps=2, **options):
    """Train for some steps; return the largest differences in output, gradients and buffers."""
    sync, alone = layer_pair(group, dtype, **options)
    x, g, _, mask = whole_batch(sizes, offset, dtype)
    found = {}
    for step in range(steps):
        leaf = x[part].clone().requires_grad_()
        mine, whole = (1 + step) * leaf, x.clone().requires_grad_()
        all_ = (1 + step) * whole
        y = sync(mine, mask[part]) if masked else sync(mine)
        right = alone(all_, mask) if masked else alone(all_)
        sync.zero_grad()
        alone.zero_grad()
        y.backward(g[part])
        right.backward(g)
        found["y"] = max(found.get("y", 0), largest(y, right[part]))
        found["dx"] = max(found.get("dx", 0), largest(leaf.grad, whole.grad[part]))
        for name, p in sync.named_parameters():
            found[f"d{name}"] = largest(total(p.grad, group), dict(alone.named_parameters())[name].grad)
    for name, buffer in sync.named_buffers():
        found[name] = largest(buffer.double(), dict(alone.named_buffers())[name].double())
    found["eval"] = largest(sync.eval()(x[part]), alone.eval()(x)[part])
    return found


def check_second_order(group, sizes, part):
    """Penalise the norm of the input gradient, and differentiate that."""
    sync, alone = layer_pair(group)
    x, g, *_ = whole_batch(sizes)

    def penalty(layer, x, g):
        (dx,) = torch.autograd.grad((torch.tanh(layer(x)) * g).sum(), x, create_graph=True)
        return dx.square().sum() + (dx * dx.tanh()).sum()

    mine, whole = x[part].clone().requires_grad_(), x.clone().requires_grad_()
    a = torch.autograd.grad(penalty(sync, mine, g[part]), (mine, *sync.parameters()))
    b = torch.autograd.grad(penalty(alone, whole, g), (whole, *alone.parameters()))
    found = {"ddx": largest(a[0], b[0][part])}
    found |= {name: largest(total(p, group), q) for name, p, q in zip(("ddw", "ddb"), a[1:], b[1:], strict=True)}
    return found


def check_forward_mode(group, sizes, part):
    sync, alone = layer_pair(group)
    x, _, t, _ = whole_batch(sizes)
    tangents = []
    for layer, at in ((sync, part), (alone, slice(None))):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(layer(forward_ad.make_dual(x[at], t[at]))).tangent)
    return {"tangent": largest(tangents[0], tangents[1][part])}


def check_torch_func(group, sizes, part):
    sync, alone = layer_pair(group, update_statistics=False)
    x, g, t, _ = whole_batch(sizes)

    def loss(layer, g):
        return lambda x: (torch.tanh(layer(x)) * g).sum()

    found = {"grad": largest(torch.func.grad(loss(sync, g[part]))(x[part]), torch.func.grad(loss(alone, g))(x)[part])}
    both = [torch.func.jvp(layer, (x[at],), (t[at],))[1] for layer, at in ((sync, part), (alone, slice(None)))]
    found["jvp"] = largest(both[0], both[1][part])
    hvp = [
        torch.func.jvp(torch.func.grad(loss(layer, g[at])), (x[at],), (t[at],))[1]
        for layer, at in ((sync, part), (alone, slice(None)))
    ]
    found["hvp"] = largest(hvp[0], hvp[1][part])
    stacked = torch.func.vmap(sync)(torch.stack([x[part], 2 * x[part] ** 3]))
    found["vmap"] = max(largest(stacked[0], alone(x)[part]), largest(stacked[1], alone(2 * x**3)[part]))
    return found


def network(statistics):
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv1d(CHANNELS, 4, 1), layers.BatchNorm1d(4, statistics=statistics), nn.Tanh(), nn.Conv1d(4, 2, 1)
    ).double()


def check_parallel(sizes, part, wrap):
    """One step of a data-parallel network is a step of the single one, if the losses are sums over the whole batch."""
    x, _, _, _ = whole_batch(sizes)
    single, model = network("batch"), network("sync")
    parallel = wrap(model)
    for net, data in ((single, x), (parallel, x[part])):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = net(data).square().sum() / len(x)
            (loss if net is single else loss * len(sizes)).backward()  # gradients are averaged over processes
            optimizer.step()
    states = (single.state_dict(), model.state_dict())
    full = [v.full_tensor() if hasattr(v, "full_tensor") else v for v in states[1].values()]
    return {name: largest(b.double(), a.double()) for (name, a), b in zip(states[0].items(), full, strict=True)}


def fully_sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def check_refusals(rank):
    """One value a channel in all processes is refused by all of them; torch's layer refuses the CPU."""
    said = []
    layer = layers.BatchNorm1d(CHANNELS, statistics="sync")
    try:
        layer(torch.randn(int(rank == 1), CHANNELS))
    except ValueError as error:
        said.append(str(error))
    alone_is_enough = layer(torch.randn(1, CHANNELS)).shape  # one here, but several in all
    try:
        torch.nn.SyncBatchNorm(CHANNELS)(torch.randn(4, CHANNELS))
    except ValueError as error:
        said.append(str(error))
    return {"said": said, "shape": list(alone_is_enough)}


def check_compiled(sizes, part):
    sync, alone = layer_pair(None)
    x, g, _, _ = whole_batch(sizes)
    compiled = torch.compile(sync, fullgraph=True, backend="aot_eager", dynamic=False)
    mine, whole = x[part].clone().requires_grad_(), x.clone().requires_grad_()
    y, right = compiled(mine), alone(whole)
    y.backward(g[part])
    right.backward(g)
    found = {"y": largest(y, right[part]), "dx": largest(mine.grad, whole.grad[part])}
    return found | {"running_var": largest(sync.running_var, alone.running_var)}


def main(rank, size, rendezvous, out, *more):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    pair = dist.new_group([0, 1])
    results = {"compiler imported": "torch._dynamo" in IMPORTED}
    if more:
        results["compiled"] = check_compiled(SIZES[2], _part(SIZES[2], rank))
    for group, sizes in () if more else ((pair, SIZES[2]), (None, SIZES[4])):
        processes = len(sizes)
        if rank >= processes:
            continue
        part = _part(sizes, rank)
        once = Renorm(r_steps=(0, 1), d_steps=(0, 1))
        cases = {
            "plain": {},
            "no-affine": {"affine": False},
            "simple-average": {"momentum": None},
            "masked": {"masked": True},
            "renorm": {"statistics": "renorm", "renorm": once, "process_group": group or dist.group.WORLD},
            "accumulate": {"accumulate": 2},
            "activation": {"activation": "leaky_relu"},
            "uses-running": {"use_running": True},
            "float32-offset": {"offset": 1e4, "dtype": torch.float32},
        }
        for name, options in cases.items():
            results[f"{processes}:{name}"] = check_step(group, sizes, part, **options)
        results[f"{processes}:second-order"] = check_second_order(group, sizes, part)
        results[f"{processes}:forward-mode"] = check_forward_mode(group, sizes, part)
        results[f"{processes}:torch.func"] = check_torch_func(group, sizes, part)
        if group is None:
            results["4:ddp"] = check_parallel(sizes, part, DistributedDataParallel)
            results["4:fsdp2"] = check_parallel([3, 1, 6, 2], _part([3, 1, 6, 2], rank), fully_sharded)
            results["refusals"] = check_refusals(rank)
    gathered = [None] * size
    dist.all_gather_object(gathered, results)
    if rank == 0:
        with open(out, "w") as file:
            json.dump(gathered, file)
    dist.destroy_process_group()


def _part(sizes, rank):
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
