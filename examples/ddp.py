"""Data-parallel training in several processes on the CPU: each process records its own batch, in one run folder.

Started by itself it makes its processes: ``python examples/ddp.py --processes 2``.
"""

import argparse
import os

import torch
from sklearn.datasets import load_digits
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import normscope as ns


def train(rank: int, args: argparse.Namespace) -> None:
    """Train one of the replicas."""
    distributed.init_process_group("gloo", init_method=f"file://{args.meeting}", rank=rank, world_size=args.processes)
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    sampler = DistributedSampler(data, args.processes, rank)
    model = DistributedDataParallel(
        nn.Sequential(
            nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10),
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)

    scope = ns.watch(model, optimizer, probes=["gradient", "statistics"], every=args.every, record_to=args.out)
    step = 0
    while step < args.steps:
        sampler.set_epoch(step)
        for inputs, targets in DataLoader(data, batch_size=32, sampler=sampler, drop_last=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            step += 1
            if step == args.steps:
                break
    scope.close()
    distributed.barrier()
    if rank == 0:
        print(f"{step} steps of {args.processes} processes, loss {loss.item():.3f}")
        frame = scope.records()
        print("cells of the run:", ", ".join(sorted(frame["cell"].unique())))
        print("page:", scope.report(f"{args.out}/page.html"))
    distributed.destroy_process_group()


def main() -> None:
    """Start the processes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--every", type=int, default=20)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--out", default="runs/ddp")
    args = options.parse_args()
    os.makedirs(args.out, exist_ok=True)
    args.meeting = os.path.abspath(f"{args.out}/.meeting-{os.getpid()}")
    multiprocessing.spawn(train, (args,), nprocs=args.processes)
    if os.path.exists(args.meeting):
        os.remove(args.meeting)


if __name__ == "__main__":
    main()
