"""A copy trained on answers to sentences that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.extraction._learned import Asked, Learned
from secure_ml.access import BlackBox
from secure_ml.batch import Batch
from secure_ml.errors import NotApplicable, unknown
from secure_ml.imitation import Imitation, Net
from secure_ml.outputs import Reveal
from secure_ml.surfaces import Tokens
from secure_ml.task import Task

Words = Literal["chain", "frequencies", "uniform"]


@dataclass(frozen=True, kw_only=True)
class GeneratedSentences(Learned):
    """Nonsense suffices to copy a reader: Thieves on Sesame Street (Krishna et al. 2020).

    https://arxiv.org/abs/1910.12366. Writes ``queries`` sentences ``(queries, L)`` as long as those of the pool: words
    drawn from the vocabulary, by their frequency in the pool, or each as it follows the one before it somewhere in the
    pool; asks for the answers, and trains a copy on them. Uniform words need no text at all: of the pool only lengths
    and special tokens are used. Raises `UsageError` for a budget below 1, `NotApplicable` where inputs hold no tokens.

    Differs from the paper: sentences follow pairs of words of a small pool in the place of Wikipedia's paragraphs, and
    the copy starts from fresh weights where the paper fine-tunes a pretrained model.
    """

    queries: int = 300
    """The budget."""
    budgets: tuple[int, ...] = ()
    """Smaller budgets at which the copy is judged on the way."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""
    source: str = ""
    """The document model whose training sentences are imitated; the victim's auxiliary split unless given."""
    words: Words = "chain"
    """How words are drawn: as they follow each other in the pool, as often as there, or all alike."""
    net: Net = "same"
    """Architecture of the copy."""
    epochs: int | None = None
    """Of the copy, over the answers; as many steps as the victim had unless given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words not in get_args(Words):
            raise unknown("way of drawing words", self.words, get_args(Words))

    def check_task(self, task: Task) -> None:
        """Raise `NotApplicable` where inputs hold no tokens."""
        _tokens(task)

    def steal(self, access: BlackBox, pool: Batch, train: Imitation, rng: torch.Generator) -> Iterator[nn.Module]:
        """A copy at each budget, from the answers so far."""
        asked, surface = Asked(access), _tokens(train.task)
        for budget in self.stages:
            models = torch.randint(len(pool), (budget - len(asked),), generator=rng)
            form = pool.take(models.to(surface.get(pool.inputs).device)).inputs
            asked.ask(surface.put(form, self.write(surface, surface.get(pool.inputs), surface.get(form), rng)))
            yield self.learn(train, asked.data)
            if asked.refused:
                return

    def write(self, surface: Tokens, known: Tensor, form: Tensor, rng: torch.Generator) -> Tensor:
        """Sentences of the form ``(n, L)`` of given ones, special tokens in place, from the words ``known``."""
        free, device = surface.editable(form), form.device
        if self.words == "uniform":
            letters = torch.arange(surface.vocabulary, device=device)
            choice = letters[surface.editable(letters)]
        else:
            choice = known[surface.editable(known)]
        drawn = choice[torch.randint(max(len(choice), 1), form.shape, generator=rng).to(device)]
        if self.words == "chain":
            drawn = _chained(surface, known, drawn, free, rng)
        return torch.where(free, drawn, form)

    @classmethod
    def tiny(cls) -> GeneratedSentences:
        """Eight queries."""
        return cls(queries=8, budgets=(4,), epochs=2)


def _chained(surface: Tokens, known: Tensor, drawn: Tensor, free: Tensor, rng: torch.Generator) -> Tensor:
    """Words ``(n, L)``, each, where the pool knows one, a successor of the word before it; else as ``drawn``."""
    pairs = surface.editable(known[:, :-1]) & surface.editable(known[:, 1:])
    first, second = known[:, :-1][pairs], known[:, 1:][pairs]
    order = first.argsort(stable=True)
    first, second = first[order].contiguous(), second[order]
    words = drawn.clone()
    for place in range(1, words.shape[1]):
        before = words[:, place - 1].contiguous()
        low, high = torch.searchsorted(first, before), torch.searchsorted(first, before, right=True)
        chance = torch.rand(len(words), generator=rng).to(words.device)
        follows = (high > low) & free[:, place - 1]
        pick = (low + (chance * (high - low)).long()).clamp(max=max(len(second) - 1, 0))
        if len(second):
            words[:, place] = torch.where(follows, second[pick], words[:, place])
    return words


def _tokens(task: Task) -> Tokens:
    surface = next((surface for surface in task.surfaces if isinstance(surface, Tokens)), None)
    if surface is None:
        raise NotApplicable(f"GeneratedSentences writes tokens; the inputs of {task.name} hold none")
    return surface
