"""Training a few directions of each dense layer and nothing else."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secure_ml.defense import Defense
from secure_ml.errors import NotApplicable, require
from secure_ml.randomness import seeded
from secure_ml.task import Task


class LowRankLinear(nn.Module):
    """A dense layer that stays as it is, and a trained product of two narrow matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = scale / rank
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The matrix that both come to, ``(out, in)``."""
        return self.base.weight + self.scale * self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        """That of the layer as it was."""
        return self.base.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        out: Tensor = self.base(inputs) + self.scale * self.up(self.down(inputs))
        return out


@dataclass(frozen=True, kw_only=True)
class LowRank(Defense):
    """Low-rank adaptation, LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685): fewer weights to train, less noise.

    Every dense layer but the last is frozen, and a product of two matrices of width ``rank`` is trained beside it; the
    last one is trained whole, and all other layers are frozen. Under DP-SGD the noise grows with the number of trained
    weights, so that a published model loses less (Yu et al. 2022, https://arxiv.org/abs/2110.06500). A model of random
    weights has little to keep, and loses by it.

    Covers nothing alone: it makes differential privacy cheaper. Does not cover: what the frozen weights already reveal.
    Inputs are ``(B, *shape)``. Raises `UsageError` for settings out of range, `NotApplicable` for a module without two
    dense layers of its own.
    """

    rank: int = 4
    """Width of the trained product."""
    scale: float = 8.0
    """Factor on the product, over its width."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"LowRank needs a rank of at least 1; given {self.rank}")
        require(self.scale > 0, f"LowRank needs a scale above 0; given {self.scale}")

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` for a model without two dense layers of its own."""
        with seeded(0, "low rank"):
            _dense(task.build())

    def adapt(self, module: nn.Module) -> nn.Module:
        """A copy of the module with a narrow product beside each dense layer but the last."""
        module = deepcopy(module).requires_grad_(False)
        dense = _dense(module)
        for name in dense[:-1]:
            parent, _, child = name.rpartition(".")
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            setattr(module.get_submodule(parent), child, LowRankLinear(layer, self.rank, self.scale))
        module.get_submodule(dense[-1]).requires_grad_(True)
        return module

    @classmethod
    def tiny(cls) -> LowRank:
        """Two directions."""
        return cls(rank=2)


def _dense(module: nn.Module) -> list[str]:
    names = [name for name, layer in module.named_modules() if type(layer) is nn.Linear]
    if len(names) < 2:
        raise NotApplicable(f"LowRank works beside dense layers, the last one whole; the module has {len(names)}")
    return names


def trained_share(module: nn.Module) -> float:
    """The share of a module's numbers that are trained."""
    sizes = torch.tensor([[p.numel() * p.requires_grad, p.numel()] for p in module.parameters()])
    return float(sizes[:, 0].sum() / sizes[:, 1].sum())
