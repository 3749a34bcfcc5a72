"""A small encrypted program, and a pool of workers that computes nothing."""

import asyncio
from pathlib import Path

import torch
from torch import nn

from defenses.homomorphic.program import Program, compile_module


def compiled(engine: str = "latency", shift: float = 0.0) -> Program:
    torch.manual_seed(0)
    module = nn.Linear(6, 3)
    nn.init.constant_(module.bias, shift)
    rows = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    return compile_module(module, rows[:1], calibration=rows, engine=engine)  # type: ignore[arg-type]


class Fake:
    """A pool that answers with what it was asked."""

    async def ask(self, keys: Path, query: bytes = b"") -> bytes:
        await asyncio.sleep(0.05)
        return query or b"0123456789abcdef"
