"""Cost of each probe in plain training steps: interleaved in random order in one process, medians of CPU time.

Run: OMP_NUM_THREADS=1 python benchmarks/probes.py [--rounds 20] [--only streaming]
"""

import argparse
import random
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from normscope import probes
from normscope.probes import Scope


def mlp():
    layers, inputs = [nn.Flatten()], 784
    for _ in range(3):
        layers += [nn.Linear(inputs, 100), nn.BatchNorm1d(100), nn.ReLU()]
        inputs = 100
    return nn.Sequential(*layers, nn.Linear(100, 10)), (64, 1, 28, 28)


def vgg():
    layers, inputs = [], 3
    for width in (32, 32, "pool", 64, 64, "pool", 128, 128, "pool", 128, 128, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs * 4, 10)), (64, 3, 32, 32)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


# Those that are made to be read at every step, and those that read the user's own pass but decompose matrices.
STREAMING = [
    probes.GradientFlow,
    probes.ActivationDistribution,
    probes.Saturation,
    probes.BatchNormGradientTerms,
    probes.ScaleInvariance,
    probes.StatisticsNoise,
    probes.AffineDrift,
    probes.UpdateRatio,
]
CASES = {
    "not due": [],
    **{probe.CODE: [probe] for probe in STREAMING},
    "all streaming": STREAMING,
    "all streaming, but distributions": [probe for probe in STREAMING if probe is not probes.ActivationDistribution],
    "conditioning": [probes.Conditioning],
    "statistics_gap": [probes.StatisticsGap],
    "statistics_gap (no losses)": [lambda: probes.StatisticsGap(loss=False)],
    "distribution_shift": [probes.DistributionShift],
    "gradient_noise": [probes.GradientNoise],
    "covariate_shift (prefix)": [lambda: probes.CovariateShift(method="prefix")],
    "covariate_shift (general)": [lambda: probes.CovariateShift(method="general")],
    "landscape (default)": [probes.LandscapeAlongGradient],
    "landscape (9 points, no curvature)": [
        lambda: probes.LandscapeAlongGradient(points=9, dense=(), matchings=("same-step",), curvature=False)
    ],
    "landscape (1 point, curvature)": [
        lambda: probes.LandscapeAlongGradient(points=1, dense=(), matchings=("same-step",))
    ],
    "curvature (top eigenvalue to 1 %, train)": [lambda: probes.Curvature(("eigenvalues",), modes=("train",))],
    "curvature (default, both modes)": [probes.Curvature],
    "curvature (layers, train)": [lambda: probes.Curvature(("layers",), modes=("train",))],
    "curvature (adaptive, train)": [lambda: probes.Curvature(("adaptive",), modes=("train",))],
    "curvature (batch, train)": [lambda: probes.Curvature(("batch",), modes=("train",))],
    "descent": [probes.Descent],
    "interaction": [probes.Interaction],
    "output_moments (train)": [lambda: probes.OutputMoments(modes=("train",))],
    "all": [
        probes.GradientFlow,
        probes.ActivationDistribution,
        probes.CovariateShift,
        probes.LandscapeAlongGradient,
    ],
}


def measure(build, rounds, cases):
    torch.manual_seed(0)
    random.seed(0)
    model, shape = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batch = (torch.randn(shape), torch.randint(10, shape[:1]))

    def plain():
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()

    scopes = {
        name: Scope(model, loss_fn, optimizer, [make() for make in makes], every=1) for name, makes in cases.items()
    }
    times = {name: [] for name in ("plain", *cases)}
    for _ in range(rounds + 2):
        for name, taken in random.sample(list(times.items()), len(times)):
            began = time.process_time()
            if name == "plain":
                plain()
            else:
                with scopes[name].step(batch):
                    plain()
            taken.append(time.process_time() - began)
    size = sum(parameter.numel() for parameter in model.parameters())
    base = statistics.median(times["plain"][2:])
    print(f"\n{build.__name__}: {size} parameters, plain step {1e3 * base:.2f} ms")
    for name, taken in times.items():
        print(f"  {name:40} {statistics.median(taken[2:]) / base:7.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    arguments = parser.parse_args()
    rounds, cases = arguments.rounds, {name: makes for name, makes in CASES.items() if arguments.only in name}
    measure(mlp, 5 * rounds, cases)
    measure(vgg, rounds, cases)
