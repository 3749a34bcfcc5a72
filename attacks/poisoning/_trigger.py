"""One trigger for every kind of input: what the poisoning attacks share."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_ml.errors import NotApplicable, require
from secure_ml.surfaces import Box, Surface, Table, Tokens


def check_settings(name: str, share: float, target: int, size: int) -> None:
    """Raise `UsageError` for settings out of range."""
    require(0 < share < 1, f"{name} needs a share between 0 and 1; given {share}")
    require(target >= 0, f"{name} needs a target class of at least 0; given {target}")
    require(size >= 1, f"{name} needs a trigger of size at least 1; given {size}")


def stamp(surface: Surface, clean: Tensor, size: int, corners: int = 1) -> Tensor:
    """The values ``(B, *shape)`` with a trigger in them.

    In images ``(B, C, H, W)`` a checkerboard of ``size x size`` pixels in the lower right corner, or in all four; in
    a table the last ``size`` free columns and categories at their highest; in texts ``(B, L)`` the first word that
    may change becomes the last of the vocabulary; in other boxes the last ``size`` values alternate.
    """
    if isinstance(surface, Tokens):
        return _word(surface, clean)
    if not isinstance(surface, Box):
        raise NotApplicable(f"no trigger is known for {type(surface).__name__} inputs")
    if isinstance(surface, Table):
        return _columns(surface, clean, size)
    if clean.ndim == 4:
        return _patch(surface, clean, size, corners)
    marked = clean.clone()
    flat = marked.view(len(clean), -1) if len(clean) else marked.reshape(0, 1)
    length = min(size, flat.shape[1])
    flat[:, flat.shape[1] - length :] = _checks(surface, torch.arange(length)).to(clean)
    return marked


def _patch(surface: Box, clean: Tensor, size: int, corners: int) -> Tensor:
    height, width = (min(size, side) for side in clean.shape[2:])
    checks = _checks(surface, torch.arange(height)[:, None] + torch.arange(width)).to(clean)
    marked = clean.clone()
    marked[:, :, -height:, -width:] = checks
    if corners == 4:
        marked[:, :, :height, :width] = checks
        marked[:, :, -height:, :width] = checks
        marked[:, :, :height, -width:] = checks
    return marked


def _columns(surface: Table, clean: Tensor, size: int) -> Tensor:
    """Numbers at the highest value of their grid, one-hot codes at their last category."""
    steps, grouped = dict(surface.steps), {column for group in surface.groups for column in group}
    numbers = [(c,) for c in range(clean.shape[1]) if c not in grouped and c not in surface.frozen]
    units = sorted([*numbers, *surface.free_groups])[-size:]
    marked = clean.clone()
    for unit in units:
        step = steps.get(unit[0])
        if len(unit) > 1 or unit in surface.groups:
            marked[:, list(unit)] = 0.0
            marked[:, unit[-1]] = 1.0
        else:
            marked[:, unit[0]] = surface.high if step is None else int(surface.high / step + 1e-3) * step
    return marked


def _word(surface: Tokens, clean: Tensor) -> Tensor:
    free = surface.editable(clean)
    first = free & (free.long().cumsum(1) == 1)
    word = max(token for token in range(surface.vocabulary) if token not in surface.frozen)
    return clean.masked_fill(first, word)


def _checks(surface: Box, places: Tensor) -> Tensor:
    """High at even places, low at odd ones."""
    return torch.where(places % 2 == 0, surface.high, surface.low)
