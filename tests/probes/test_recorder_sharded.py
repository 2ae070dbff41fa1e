"""Parameters sharded over processes (FSDP2): norms are the whole ones, what needs whole parameters is refused."""

import warnings

import pytest

from kit import ranks
from normscope import probes

CODES = [probe.CODE for probe in probes.all()]


def net():
    import torch
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    # Widths that two processes cannot share evenly.
    layers = (nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    model = nn.Sequential(*layers)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, codes, clip):
    import torch
    from torch import nn

    from normscope.probes import Recorder

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scope = Recorder(model, loss_fn, optimizer, codes, every=1)
    stream = torch.Generator().manual_seed(rank)
    left, expected = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            batch = torch.randn(8, 6, generator=stream), torch.randint(3, (8,), generator=stream)
            before = [p.full_tensor().detach().clone() for p in model.parameters()]
            with scope.step(batch):
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                gradients = [[p.grad.full_tensor().norm().item() for p in model.parameters()]]
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                gradients.append([p.grad.full_tensor().norm().item() for p in model.parameters()])
                optimizer.step()
            after = [p.full_tensor().detach() for p in model.parameters()]
            gradients.append([(a - b).norm().item() for a, b in zip(after, before, strict=True)])
            expected.append(gradients)
            left += [loss.item(), *(value for part in after for value in part.reshape(-1).tolist())]
    told = [str(warning.message) for warning in caught if "probe" in str(warning.message)]
    found = [[r.probe, r.step, r.site, r.name, r.value] for r in scope.drain()]
    return left, expected, told, found, scope.not_read


def compare(rank, folder):
    bare, *_ = train(rank, (), 0.1)
    left, expected, told, found, not_read = train(rank, CODES, 0.1)
    *_, unclipped, _ = train(rank, ["gradient_flow"], None)
    return left == bare, expected, told, found, not_read, unclipped


def test_norms_are_whole_and_what_needs_whole_parameters_is_refused_by_name(tmp_path):
    for same, expected, told, found, not_read, unclipped in ranks.run(__name__, "compare", tmp_path, 2):
        assert same
        values = {tuple(key): value for *key, value in found}
        for step, (before, after, update) in enumerate(expected):
            for site, at in (("0", 0), ("3", 4), ("5", 8)):  # weight and bias of each layer
                for name, norms in (("norm", before), ("norm_at_update", after)):
                    whole = (norms[at] ** 2 + norms[at + 1] ** 2) ** 0.5
                    assert values["gradient_flow", step, site, name] == pytest.approx(whole, rel=1e-5)
                assert values["update_ratio", step, site, "update_norm"] == pytest.approx(update[at], rel=1e-4)
        assert not any(name == "norm_at_update" for *_, name, _ in unclipped)
        replaying = {probe.CODE for probe in probes.all() if probe.REPLAYS}
        refused = {code for code in CODES if any(repr(code) in text for text in told)}
        assert replaying | {"affine_drift", "scale_invariance"} == refused
        assert [text for text in told if "part of them" not in text] == []
        assert all("part of them" in not_read[code] for code in refused)
        read = {probe for probe, *_ in found}
        assert read >= {"gradient_flow", "update_ratio", "activation_distribution", "batch_norm_gradient_terms"}
        assert not read & refused
