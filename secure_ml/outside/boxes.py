"""The box that numbers live in: given, or read off the data and said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secure_ml.errors import UsageError, require
from secure_ml.families.scrutiny import Finding
from secure_ml.outside.adapted import Path, Scale
from secure_ml.outside.change import Bounds, Change, name_of
from secure_ml.outside.columns import Columns
from secure_ml.surfaces import Box, Table
from secure_ml.threats import Features, Linf, Threat

BOX, NORMALISATION, CATEGORIES, THREAT = "input box", "normalisation", "categories", "threat"
NATURAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Boxes that numbers usually live in."""
GIVE = "give box=(low, high)"


def boxed(
    path: Path, values: Tensor, box: Bounds | None, found: list[Finding], columns: Columns | None = None
) -> Change:
    """The box of numbers ``(B, *shape)``, or the table of a frame's; `UsageError` where they leave one given."""
    require(
        bool(values.isfinite().all()), f"{name_of(path)} holds NaN or infinite values: fill them in before the model"
    )
    if columns is not None:
        require(box is None, "box is for numbers: leave it out for a frame with words or gaps, or encode them before")
        return _frame(path, values, found, columns)
    low, high = values.min().item(), values.max().item()
    natural = next(((a, b) for a, b in NATURAL if a <= low and high <= b and high - low >= 0.5 * (b - a)), None)
    if box is not None and any(torch.as_tensor(bound).ndim for bound in box):
        return _columns(path, values, box, found)
    if box is None and values.ndim == 2 and natural not in NATURAL[:2]:
        return _columns(path, values, None, found)
    if box is not None:
        surface = Box(float(box[0]), float(box[1]), path)
        Box(surface.low, surface.high).check(values)
        found.append(Finding(BOX, "PASS", f"[{surface.low:g}, {surface.high:g}] as given, which all inputs keep to"))
    else:
        require(low < high, f"{name_of(path)} is {low:g} in all examples: give box=, if that is meant")
        surface = Box(*(natural or (low, high)), path)
        fits = f"which holds all inputs, [{low:.4g}, {high:.4g}]" if natural else "the range of the inputs"
        found.append(Finding(BOX, "WARN", f"assumed [{surface.low:.4g}, {surface.high:.4g}], {fits}", GIVE))
        if natural is None and values.ndim == 4:
            look = "images look normalised outside of the module: a radius is in that unit"
            found.append(Finding(NORMALISATION, "WARN", look, "give normalize=(mean, std)"))
    return Change(surfaces=(surface,), threat=_radius(surface, values, found))


def normalised(path: Path, values: Tensor, box: Bounds | None, by: Bounds, found: list[Finding]) -> Change:
    """A box of raw values before a module that expects them normalised by channel, in whichever form the data come."""
    mean, std = (_per_channel(part, values) for part in by)
    low, high = (0.0, 1.0) if box is None else (float(box[0]), float(box[1]))
    surface, scale = Box(low, high, path), Scale(1 / std, -mean / std, path)
    raw, back = _inside(values, low, high, 1e-6), scale.back(values)
    if not raw and not _inside(back, low, high, 1e-3 * (high - low)):
        raise UsageError(
            f"inputs lie in [{values.min():.4g}, {values.max():.4g}], and with their normalisation undone in "
            f"[{back.min():.4g}, {back.max():.4g}]: neither fits the box [{low:g}, {high:g}]; give that of raw values"
        )
    how = "raw, and are normalised before the module" if raw else "normalised, and are turned back into raw ones"
    found.append(Finding(NORMALISATION, "PASS", f"the values of the data are {how}"))
    found.append(Finding(BOX, "PASS" if box else "WARN", f"raw values in [{low:g}, {high:g}]", "" if box else GIVE))
    return Change(surfaces=(surface,), threat=_radius(surface, values, found), scale=scale, raw=raw)


def _columns(path: Path, values: Tensor, box: Bounds | None, found: list[Finding]) -> Change:
    """Each column brought to [0, 1]: a radius is then a share of each column's own range."""
    require(values.ndim == 2, f"bounds for each column need rows (B, d); {name_of(path)} is {tuple(values.shape)}")
    width = values.shape[1]
    low, high = (values.amin(0), values.amax(0)) if box is None else (_bound(part, width) for part in box)
    outside = ((values < low - 1e-6) | (values > high + 1e-6)).any(0).nonzero()[:, 0].tolist()
    require(not outside, f"columns {outside[:5]} hold values outside of the box that was given")
    still = int((low == high).sum())
    text = f"each of {width} columns is scaled to [0, 1] by its {'observed' if box is None else 'given'} range"
    text += f"; {still} do not vary, and stay" if still else ""
    remedy = "" if box else "give box=(lowest, highest), a number for each column"
    found.append(Finding(BOX, "PASS" if box else "WARN", text, remedy))
    codes = ((values == 0) | (values == 1)).all(0) & (low < high)
    if bool(codes.any()):
        which = codes.nonzero()[:, 0].tolist()
        some = ", ".join(map(str, which[:5])) + (", ..." if len(which) > 5 else "")
        said = f"columns {some} hold 0 and 1 alone, and are changed as if they were real numbers"
        found.append(Finding(CATEGORIES, "WARN", said, "give surfaces=(sm.Table(frozen=..., groups=...),)"))
    surface = Box(0.0, 1.0, path)
    return Change(
        surfaces=(surface,),
        threat=_radius(surface, values, found),
        scale=Scale((high - low)[None], low[None], path),
        public=() if box else ("the range of each column, read off the data",),
        raw=False,
    )


def _frame(path: Path, values: Tensor, found: list[Finding], columns: Columns) -> Change:
    """Numbers brought to [0, 1] column by column, and words that may be replaced by others of their column."""
    hot = [place for group in columns.groups for place in group]
    low, high = values.amin(0), values.amax(0)
    low[hot], high[hot] = 0.0, 1.0
    text = f"each number is scaled to [0, 1] by its column's observed range; {columns.said}"
    found.append(Finding(BOX, "WARN", text, "encode columns before the model, and give box= and surfaces="))
    surface = Table(0.0, 1.0, path, frozen=columns.frozen, groups=columns.groups)
    threat: Threat = Linf(0.05)
    said = f"{threat}, which is 1/20 of each number's range"
    if columns.groups:
        threat = Features(0.05, flips=1)
        said = f"{threat}, which is 1/20 of each number's range and one word replaced by another"
    found.append(Finding(THREAT, "WARN", said, "give threat=sm.Features(radius, flips=...), say"))
    return Change(
        surfaces=(surface,),
        threat=threat,
        scale=Scale((high - low)[None], low[None], path),
        public=("the range and the words of each column, read off the data",),
        raw=False,
    )


def _radius(surface: Box, values: Tensor, found: list[Finding]) -> Threat:
    """The customary radius: 8/255 of the box for images, a twentieth of it for other numbers."""
    share, name = (8 / 255, "8/255") if values.ndim == 4 else (0.05, "1/20")
    threat = Linf(float(f"{share * (surface.high - surface.low):.4g}"))
    found.append(Finding(THREAT, "WARN", f"{threat}, which is {name} of the box", "give threat=sm.Linf(...), say"))
    return threat


def _inside(values: Tensor, low: float, high: float, slack: float) -> bool:
    return bool((values >= low - slack).all() and (values <= high + slack).all())


def _bound(given: Any, width: int) -> Tensor:
    numbers = torch.as_tensor(given, dtype=torch.float32)
    require(numbers.ndim == 0 or numbers.shape == (width,), f"box has {numbers.numel()} numbers for {width} columns")
    return numbers.expand(width)


def _per_channel(given: Any, values: Tensor) -> Tensor:
    numbers = torch.as_tensor(given, dtype=torch.float32).flatten()
    channels = values.shape[1]
    require(len(numbers) in (1, channels), f"normalize has {len(numbers)} numbers for {channels} channels")
    return numbers.reshape(1, -1, *[1] * (values.ndim - 2))
