"""Independent random streams of one seed: initial weights, batch order, split, noise."""

import hashlib

import torch


def stream(seed: int, purpose: str) -> int:
    """Return the seed of the stream that serves one purpose.

    Arms of a study share the streams of their seed, so that what one arm draws more (noise, say) shifts no other
    draw: the initial weights and the batches stay the same tensors in every arm.

    Args:
        seed: Seed of the replicate.
        purpose: What is drawn, for example ``"init"`` or ``"batches"``.

    Returns:
        An integer in [0, 2**63).
    """
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that stands at the beginning of the stream (see ``stream``)."""
    return torch.Generator().manual_seed(stream(seed, purpose))
