"""What defenses put around a module or around what is served."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secure_ml.adaptive import Transform
from secure_ml.batch import Tree, tree_map
from secure_ml.victim import Served, Wrapped


class Preprocessed(nn.Module):
    """A transform of every tensor of real numbers among the inputs, and then a module: what an attacker meets."""

    def __init__(self, transform: Transform, module: nn.Module) -> None:
        super().__init__()
        self.transform, self.inner = transform, module

    def forward(self, inputs: Tree) -> Tensor:
        """The module's outputs for transformed inputs."""
        outputs: Tensor = self.inner(tree_map(lambda t: self.transform(t) if t.is_floating_point() else t, inputs))
        return outputs

    def extra_repr(self) -> str:
        """The transform's settings."""
        return repr(self.transform)


class Around(nn.Module):
    """A module around another that has its weights under their own names, so that it is saved like the bare one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's."""
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the inner module."""
        return self.inner.load_state_dict(*args, **kwargs)


class ScaledModule(Around):
    """The outputs of a module, multiplied."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__(module)
        self.factor = factor

    def forward(self, inputs: Tree) -> Tensor:
        """The multiplied outputs."""
        outputs: Tensor = self.inner(inputs)
        return outputs * self.factor


class ScaledAnswers(Wrapped):
    """The answers of another predictor, multiplied: sharper above 1, smoother below."""

    def __init__(self, inner: Served, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def __call__(self, inputs: Tree) -> Tensor:
        """The multiplied answers."""
        return self.inner(inputs) * self.factor
