"""Models from outside, in whatever form they come, as modules."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secure_ml.batch import Tree, leaves
from secure_ml.errors import SecureMLError, UsageError
from secure_ml.families.scrutiny import Finding
from secure_ml.modes import evaluating
from secure_ml.outside.adapted import Call, ask
from secure_ml.outside.endpoint import Endpoint, Remote
from secure_ml.outside.estimator import Estimator, Predicts, asked
from secure_ml.outside.files import open_file
from secure_ml.outside.opaque import opaque
from secure_ml.task import Task
from secure_ml.victim import resolve_device

MODEL, MODE, DEVICE = "model", "mode", "device"
Model = nn.Module | Endpoint | Path | str | Predicts | Callable[..., Any] | Task


def module_of(model: Model) -> nn.Module:
    """The module of a model: itself, or one that asks a file, an estimator or a service."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Endpoint):
        return Remote(model)
    if isinstance(model, (Path, str)):
        return Remote(Endpoint.read(model)) if str(model).endswith((".toml", ".json")) else open_file(model)
    if isinstance(model, Predicts):
        return Estimator(model)
    if callable(model) and not isinstance(model, type):
        return asked(model)
    raise UsageError(
        f"a model is an nn.Module, a file (.pt2, .pt, .onnx), an Endpoint or its file (.toml, .json), a fitted "
        f"scikit-learn estimator, or a function of arrays; given {type(model).__name__}"
    )


def first_answers(module: nn.Module, inputs: Tree, call: Call) -> Any:
    """What a module returns for a few inputs; `UsageError` where it cannot be asked about such."""
    try:
        with evaluating(module), torch.no_grad():
            return ask(module, inputs, call)
    except SecureMLError:
        raise
    except Exception as error:  # whatever a module of somebody else's raises
        shapes = ", ".join(f"{tuple(leaf.shape)} of {leaf.dtype}" for leaf in leaves(inputs))
        first = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"the model cannot be asked about the inputs of test, {shapes}: {type(error).__name__}: {first}"
        ) from error


def place_of(module: nn.Module) -> torch.device:
    """Where a module lies."""
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def placed(module: nn.Module, device: str | torch.device, found: list[Finding]) -> nn.Module:
    """The module where it lies, or a copy of it elsewhere."""
    here = place_of(module)
    blind = opaque(module)
    if blind is not None:
        found.append(Finding(MODEL, "PASS", f"{blind.what}, which only answers"))
    place = here if device == "auto" else resolve_device(device)
    if any(part.training for part in module.modules()) and blind is None:
        found.append(Finding(MODE, "PASS", "the module came in training mode, and is asked in evaluation mode"))
    copied = place.type != here.type
    found.append(Finding(DEVICE, "PASS", f"{place.type}" + (", on a copy" if copied else ", where the module lies")))
    return deepcopy(module).to(place) if copied else module
