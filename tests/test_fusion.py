"""Pairs of a picture and a sentence, of which neither half tells the other's part of the answer."""

import pytest
import torch
from torch import Tensor

import secure_ml as sm
from secure_ml.batch import Batch, Splits
from secure_ml.tasks import fusion
from tests import laws

pytest.importorskip("transformers")


def pairs(n: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Pairs, and of each the department, the wish (as its sentence says) and the desk."""
    classes = torch.arange(n) % 10
    batch = fusion._pairs(Batch(torch.zeros(n, 1, 2, 2), classes), torch.Generator().manual_seed(0))
    assert isinstance(batch.inputs, dict)
    text, desk = batch.inputs["text"], batch.target
    assert isinstance(text, Tensor)
    assert isinstance(desk, Tensor)
    says = torch.stack([(text[:, None] == same).all(2).any(1) for same in fusion._sentences()], 1)
    assert says.sum(1).eq(1).all(), "a sentence stands for more than one wish"
    return batch, torch.tensor(fusion.DEPARTMENTS)[classes], says.long().argmax(1), desk


def test_a_desk_is_told_by_both_halves() -> None:
    _, department, wish, desk = pairs(2000)
    assert torch.equal(3 * department + wish, desk)


def test_neither_half_tells_the_other_s_factor() -> None:
    _, department, wish, _ = pairs(20000)
    counts = torch.bincount(3 * department + wish, minlength=12).reshape(4, 3) / 20000
    assert torch.allclose(counts, counts.sum(1, keepdim=True) * counts.sum(0), atol=0.01)
    assert counts.sum(0).max() < 0.35
    assert counts.sum(1).max() == pytest.approx(0.4)


def test_words_of_the_wish_stay() -> None:
    tokens = sm.task("fusion", tiny=True).surfaces[1]
    assert isinstance(tokens, sm.Tokens)
    batch = pairs(200)[0]
    assert isinstance(batch.inputs, dict)
    text = batch.inputs["text"]
    assert isinstance(text, Tensor)
    rng = torch.Generator().manual_seed(0)
    changed = sm.Edits(3).project(tokens, text, torch.randint(1, fusion.VOCABULARY, text.shape, generator=rng))
    assert not torch.equal(changed, text)
    naming = text <= len(fusion.NAMING)
    assert torch.equal(changed[naming], text[naming])
    assert not ((changed != text) & (changed <= len(fusion.NAMING))).any()


@pytest.mark.parametrize(("half", "other"), [("image", "text"), ("text", "image")])
def test_a_half_is_blind_to_the_other(half: str, other: str) -> None:
    task = sm.task("fusion", half=half, tiny=True)
    assert repr(task) == f"fusion(half={half!r}, tiny=True)"
    module = task.build().eval()
    few = task.draw(0).test.take(slice(0, 4))
    assert isinstance(few.inputs, dict)
    assert torch.equal(module(few.inputs), module({half: few.inputs[half]}))
    with pytest.raises(KeyError):
        module({other: few.inputs[other]})
    victim = sm.fit(task, device="cpu")
    threat = task.threat
    assert threat is not None
    assert [type(task.surface(threat))] == [type(surface) for surface in task.surfaces]
    assert 0 <= victim.score().value <= 1


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    module = fusion.SmallBert(8).eval()
    text = fusion._sentences()[0, :3]
    assert (text[:, -1] == 0).all()
    assert torch.allclose(module(text), module(text[:, :-1]), atol=1e-6)


def test_laws_hold_for_each_half() -> None:
    for half in ("image", "text"):
        laws.law_per_example_gradients(sm.task("fusion", half=half, tiny=True))


@pytest.mark.data
def test_official_pairs_are_the_same_for_every_seed() -> None:
    task = sm.task("fusion")
    first, other = task.draw(0), task.draw(1)
    assert [len(part) for part in first.parts().values()] == [8000, 1000, 4000, 1600, 2000]
    assert Splits(first.test, *[first.test] * 3).fingerprint() == Splits(other.test, *[other.test] * 3).fingerprint()


@pytest.mark.data
@pytest.mark.slow
def test_both_halves_see_more_than_each() -> None:
    both, image, text = (
        sm.fit(sm.task("fusion", half=half), seed=0, device="cpu").score().value for half in ("both", "image", "text")
    )
    assert both >= 0.85
    assert max(image, text) <= both - 0.4
