"""Explicit randomness: one seed, one independent stream for each purpose, and no trace on the global one."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: object) -> int:
    """A seed for one purpose, independent of the seeds for every other: 63 bits of SHA-256."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose; on the CPU unless told, so that a seed means the same on every device."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Run code that draws from the global streams (initialisation, dropout) and leave them as they were."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(derive(seed, *purpose))
        yield
