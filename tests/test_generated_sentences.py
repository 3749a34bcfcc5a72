"""Sentences that nobody wrote: made of what the pool holds, in its form, and enough to copy a reader."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import secure_ml as sm
from attacks import GeneratedSentences
from secure_ml.surfaces import Tokens

KNOWN = torch.tensor([[1, 2, 3, 0], [2, 3, 1, 2], [9, 0, 0, 0]])
FORM = torch.tensor([[5, 5, 5, 5], [5, 5, 0, 0]]).repeat(200, 1)


def written(words: str) -> torch.Tensor:
    attack = GeneratedSentences(words=words)
    return attack.write(Tokens(12), KNOWN, FORM, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("words", ["chain", "frequencies", "uniform"])
def test_padding_stays_and_is_never_written(words: str) -> None:
    assert ((written(words) == 0) == (FORM == 0)).all()


def test_a_chain_holds_pairs_of_the_pool_alone() -> None:
    pairs = {(1, 2), (2, 3), (3, 1)}
    sentences = written("chain").tolist()
    found = {(a, b) for row in sentences for a, b in pairwise(row) if a and b}
    assert {pair for pair in found if pair[0] != 9} == pairs  # nothing follows 9: any word may
    assert not pairs >= {(a, b) for row in written("frequencies").tolist() for a, b in pairwise(row)}


def test_frequencies_are_those_of_the_pool() -> None:
    words = written("frequencies")
    counts = torch.bincount(words[words > 0], minlength=12) / (words > 0).sum()
    expected = torch.bincount(KNOWN[KNOWN > 0], minlength=12) / (KNOWN > 0).sum()
    assert (counts - expected).abs().max() < 0.05
    assert (written("uniform").unique() == torch.arange(12)).all()


def test_nonsense_copies_a_reader() -> None:
    task = sm.task("text_embedding", tiny=True)
    victim = sm.fit(replace(task, recipe=replace(task.recipe, epochs=40)), seed=0, device="cpu")
    found = GeneratedSentences(queries=300, epochs=60).evaluate(victim, threat=None, seed=0, examples=200)
    assert victim.served(victim.splits.test.inputs).argmax(1).unique().numel() > 1  # or a constant were a copy
    assert (found.rows[0].value or 0.0) > 0.85


def test_bad_requests() -> None:
    with pytest.raises(sm.UsageError, match="way of drawing words"):
        GeneratedSentences(words="rhymes")
    with pytest.raises(sm.NotApplicable, match="writes tokens"):
        GeneratedSentences().check(sm.task("digits_mlp", tiny=True), None)
