"""Searching among replacements of tokens: what the attacks on texts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isinf

import torch
from torch import Tensor

from secure_ml.access import BlackBox, WhiteBox
from secure_ml.batch import Batch
from secure_ml.surfaces import Tokens


@dataclass(frozen=True)
class Trials:
    """Replacements to be tried: in the text ``row``, at ``position``, the token ``token``, each ``(T,)``."""

    row: Tensor
    position: Tensor
    token: Tensor

    def of(self, texts: Tensor) -> Tensor:
        """The texts ``(T, L)`` that they make of ``(N, L)``."""
        return texts[self.row].scatter(1, self.position[:, None], self.token[:, None])

    def take(self, index: slice) -> Trials:
        """Some of them."""
        return Trials(self.row[index], self.position[index], self.token[index])


Asked = WhiteBox | BlackBox
"""Who tells losses: the module, or what is served."""
Propose = Callable[[Batch, Tensor], Trials]
"""Texts as they stand, and where a token may still change, a mask ``(N, L)``, to what is worth a try."""


def search(
    access: Asked,
    batch: Batch,
    surface: Tokens,
    edits: int,
    propose: Propose,
    *,
    beam: int = 1,
    again: int = 0,
    early: bool = True,
) -> Tensor:
    """The worst tokens ``(B, L)`` found within a number of edits.

    After each round, of which there are as many as edits and ``again`` more, the ``beam`` best texts of each example
    go on. In the rounds beyond the edits, edited positions may be edited anew. ``early`` prefers texts on
    which the score is as low as it can be, and their examples leave; otherwise the loss alone counts.
    """
    clean = surface.get(batch.inputs)
    if not edits or not len(clean):
        return clean
    best, texts = clean.clone(), clean
    owner = torch.arange(len(clean), device=clean.device)
    worth = _worth(access, batch, early)
    highest = worth.clone()
    for done in range(edits + again):
        going = highest[owner] < DONE
        texts, owner, worth = texts[going], owner[going], worth[going]
        if not len(owner):
            break
        edited = texts != clean[owner]
        room = edited.sum(1, keepdim=True) < edits
        free = surface.editable(clean[owner]) & torch.where(edited, done >= edits, room)
        stand = batch.take(owner)
        trials = propose(Batch(surface.put(stand.inputs, texts), stand.target), free)
        tried = _try(access, stand, surface, texts, trials, early)
        texts, owner, worth = _select(texts, owner, worth, trials, tried, beam)
        first = torch.ones_like(owner, dtype=torch.bool)
        first[1:] = owner[1:] != owner[:-1]
        best[owner[first]], highest[owner[first]] = texts[first], worth[first]
    return best


DONE = 1e6
"""What a text is worth beyond its loss when the score is as low as it can be."""


def _worth(access: Asked, batch: Batch, early: bool) -> Tensor:
    """What each text is worth to the adversary, ``(B,)``: its loss, and `DONE` if it cannot get worse."""
    score = access.task.score
    losses, outputs = access.observe(batch)
    worth = losses.double().nan_to_num(nan=-torch.inf, posinf=DONE / 2, neginf=-torch.inf)
    if not early or isinf(score.ceiling):
        return worth
    return worth + DONE * (score.harm(score.per_example(outputs, batch.target)) >= score.ceiling)


def _try(access: Asked, stand: Batch, surface: Tokens, texts: Tensor, trials: Trials, early: bool) -> Tensor:
    """What the text of each trial is worth, ``(T,)``; as many at a time as the task's module is shown."""
    size, found = access.task.chunk, [torch.zeros(0, dtype=torch.double, device=texts.device)]
    for start in range(0, len(trials.row), size):
        some = trials.take(slice(start, start + size))
        piece = stand.take(some.row)
        found.append(_worth(access, Batch(surface.put(piece.inputs, some.of(texts)), piece.target), early))
    return torch.cat(found)


def _select(
    texts: Tensor, owner: Tensor, worth: Tensor, trials: Trials, tried: Tensor, beam: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``beam`` texts of each example, those that stood included, sorted by example and worth."""
    standing = torch.arange(len(owner), device=owner.device)
    row = torch.cat([standing, trials.row])
    position = torch.cat([torch.zeros_like(standing), trials.position])
    token = torch.cat([texts[:, 0], trials.token])
    owners, worths = owner[row], torch.cat([worth, tried])
    order = worths.argsort(descending=True, stable=True)
    order = order[owners[order].argsort(stable=True)]
    if beam > 1:
        order = _distinct(order, texts, Trials(row, position, token), owners)
    sorted_owners = owners[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_owners, sorted_owners)
    order = order[rank < beam]
    kept = Trials(row[order], position[order], token[order])
    return kept.of(texts), owners[order], worths[order]


def _distinct(order: Tensor, texts: Tensor, trials: Trials, owners: Tensor) -> Tensor:
    """The order without texts that come a second time: the same edits in another sequence."""
    rng = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (texts.shape[1],), generator=rng).to(texts.device)
    codes = (texts * factors).sum(1)
    change = trials.token - texts[trials.row, trials.position]
    code = (codes[trials.row] + change * factors[trials.position])[order]  # overflow wraps: a hash
    by_code = code.argsort(stable=True)
    by_both = by_code[owners[order][by_code].argsort(stable=True)]
    again = torch.zeros_like(code, dtype=torch.bool)
    same = (code[by_both][1:] == code[by_both][:-1]) & (owners[order][by_both][1:] == owners[order][by_both][:-1])
    again[by_both[1:]] = same
    return order[~again]
