"""Records, findings and trainings for tests of the places where a scope's readings are shown."""

import torch
from torch import nn

import normscope as ns
from normscope.records import Finding, Record, Severity

RECORDS = [
    Record("scope", step, "gradient_flow", site, name, value)
    for step, shift in ((0, 0.0), (50, 1.5))
    for site, name, value in (
        ("layer 1.0.conv", "norm", 0.25 + shift),
        ("", "growth", 1.5 + shift),
        ("", "loss@frozen,s=0.1", float("nan")),
    )
]
NAMES = ["gradient_flow/norm/layer_1.0.conv", "gradient_flow/growth", "gradient_flow/loss:frozen_s_0.1"]
FINDINGS = [
    Finding(
        "NS102",
        "tiny-batch",
        severity,
        f"Batches of 2 [{place}].",
        (place,),
        fix="Use more.",
        details={"first_step": 50},
    )
    for severity, place in ((Severity.ERROR, "a.b"), (Severity.WARNING, "c d"), (Severity.INFO, ""))
]


def trained(sinks, steps=5, between=lambda step: None, close=False, **options):
    """Train a net under a scope with sinks; return its parameters, as bytes, and the scope."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = ns.watch(model, optimizer, every=1, probes="gradient_flow", sinks=sinks, **options)
    for step in range(steps):
        between(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.randint(0, 3, (16,))).backward()
        optimizer.step()
    scope.detach()
    if close:
        scope.close()
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()], scope


def values(scope):
    """Return {(name of the scalar, step): value} of what a scope has read."""
    from normscope.integrations import scalar_name

    records = (
        Record(row["cell"], row["step"], row["probe"], row["site"], row["name"], row["value"])
        for row in scope.records().iter_rows(named=True)
    )
    return {(scalar_name(record), record.step): record.value for record in records}
