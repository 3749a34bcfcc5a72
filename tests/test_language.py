"""Models of the next character or token: their losses, their networks, what they write and what they remember."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from secure_ml.batch import Batch, Splits
from secure_ml.errors import UsageError
from secure_ml.task import next_token_loss
from secure_ml.tasks import _characters as characters
from secure_ml.tasks.char_rnn import LSTM
from secure_ml.tasks.gpt2 import CausalLM, small_gpt2

NAMES = ["char_rnn", "gpt2", "gpt2_pretrained"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def successor(tokens: Tensor) -> Tensor:
    """A predictor that is sure of the next character in the list of 65."""
    return 1e4 * nn.functional.one_hot((tokens + 1) % 65, 65).float()


# -- loss -------------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_table_is_its_closed_form() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    batch = Batch(torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 1], [2, 0]]))
    losses = next_token_loss(lambda tokens: chances.log()[tokens] + 7, batch)
    expected = [-(math.log(0.5) + math.log(0.8)) / 2, -(math.log(0.6) + math.log(0.2)) / 2]
    assert torch.allclose(losses, torch.tensor(expected))


@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_score_the_log_of_the_vocabulary(name: str) -> None:
    task = sm.task(name, tiny=True)
    size = task.surfaces[0].vocabulary
    score = task.score.measure(lambda tokens: torch.zeros(*tokens.shape, size), task.draw(0).test)
    assert score.value == pytest.approx(math.log(size), rel=1e-5)


# -- networks ---------------------------------------------------------------------------------------------------------


def test_the_lstm_is_that_of_torch() -> None:
    """States and every gradient, by torch's own cell under automatic differentiation."""
    torch.manual_seed(0)
    mine, theirs = LSTM(65, 5, 7).double().eval(), nn.LSTM(5, 7, batch_first=True).double()
    order = torch.cat([torch.arange(7) + 7 * gate for gate in (1, 0, 3, 2)])  # keep, write, show, new
    with torch.no_grad():
        mine.input.weight.copy_(theirs.weight_ih_l0[order])
        mine.state.weight.copy_(theirs.weight_hh_l0[order])
        mine.input.bias.copy_((theirs.bias_ih_l0 + theirs.bias_hh_l0)[order])
    tokens = torch.randint(65, (3, 6))
    expected = mine.output(theirs(mine.embedding(tokens))[0])
    assert torch.allclose(mine(tokens), expected)
    with torch.no_grad():
        assert torch.allclose(mine(tokens), expected)
    cells = [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0, mine.embedding.weight]
    wanted = torch.autograd.grad(expected.square().sum(), cells)
    layers = [mine.input.weight, mine.state.weight, mine.input.bias, mine.embedding.weight]
    found = torch.autograd.grad(mine(tokens).square().sum(), layers)
    for gradient, other in zip(found[:3], wanted[:3], strict=True):
        assert torch.allclose(gradient, other[order])
    assert torch.allclose(found[3], wanted[3])


def test_the_gpt2_is_that_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=65, n_positions=8, n_embd=32, n_layer=2, n_head=2, use_cache=False)
    config.bos_token_id = config.eos_token_id = None
    theirs = GPT2LMHeadModel(config).eval()
    tokens = torch.randint(65, (3, 8))
    expected = theirs(tokens).logits
    mine = CausalLM(theirs).eval()
    assert torch.allclose(mine(tokens), expected, atol=1e-5)
    assert {type(part).__name__ for part in mine.modules()}.isdisjoint({"Conv1D"})
    assert mine(tokens[:0]).shape == (0, 8, 65)


@pytest.mark.parametrize("build", [lambda: LSTM(65, 4, 8), lambda: small_gpt2(65, 8, 1, 32)], ids=["lstm", "gpt2"])
def test_no_answer_knows_what_comes(build: "type[nn.Module]") -> None:
    module, tokens = build().eval(), torch.randint(65, (2, 8), generator=rng())
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 65
    before, after = module(tokens), module(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


# -- text -------------------------------------------------------------------------------------------------------------


def test_windows_share_no_character_and_lose_only_the_rest() -> None:
    tokens = characters.encode(characters.SONNETS)
    cut = characters.windows(tokens, 8)
    assert len(cut) == len(tokens) // 9 > 150
    assert torch.equal(cut.inputs[:, 1:], cut.target[:, :-1])
    again = torch.cat([cut.inputs, cut.target[:, -1:]], 1).flatten()
    assert torch.equal(again, tokens[: len(again)])
    assert characters.decode(tokens) == characters.SONNETS


def test_characters_beyond_the_65() -> None:
    assert len(set(characters.CHARACTERS)) == 65
    assert characters.known("na\u00efve 7!") == "na ve  !"
    with pytest.raises(UsageError, match="'7'"):
        characters.encode("7 kings")


@pytest.mark.data
@pytest.mark.parametrize("text", ["shakespeare", "names"])
def test_the_real_texts(text: str) -> None:
    task = sm.task("char_rnn", text=text)
    first, second = task.draw(0), task.draw(1)
    assert first.fingerprint() == task.draw(0).fingerprint() != second.fingerprint()
    assert len(first.train) > 5000
    if text == "shakespeare":
        assert torch.equal(first.test.inputs, second.test.inputs)
        assert len(first.test) == 111_540 // 129


# -- what they write --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["char_rnn", "gpt2"])
def test_a_sure_predictor_writes_what_it_is_sure_of(name: str) -> None:
    text = sm.task(name, tiny=True).sample(successor, "XYZab", rng()).text
    assert text.startswith("XYZabcdefghijklmnopqrstuvwxyz\n !$&',-.3:;?ABC")
    assert len(text) == 305


@pytest.mark.parametrize("name", NAMES)
def test_writing_depends_on_the_seed_alone(name: str) -> None:
    task = sm.task(name, tiny=True)
    torch.manual_seed(0)
    module = task.build().eval()
    first, again, other = (task.sample(module, "Love", rng(seed)).text for seed in (0, 0, 1))
    assert first == again != other
    assert first.startswith("Love")
    assert task.sample(module, "", rng()).text.startswith("\n")


@pytest.mark.parametrize("name", ["char_rnn", "gpt2"])
def test_a_prompt_with_unknown_characters_is_refused(name: str) -> None:
    task = sm.task(name, tiny=True)
    with pytest.raises(UsageError, match="'@'"):
        task.sample(successor, "me@home", rng())


# -- what they remember -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["char_rnn", "gpt2"])
def test_a_planted_canary_is_remembered(name: str) -> None:
    planted, control = (characters.windows(characters.encode(text), 8) for text in ("Qzx3$jKvW", "Wvj$3KxzQ"))

    def with_canary(seed: torch.Generator) -> Splits:
        splits = characters.sonnets(seed)
        rows = torch.zeros(20, dtype=torch.long)
        both = (torch.cat([a, b]) for a, b in zip(parts(splits.train), parts(planted.take(rows)), strict=True))
        return dataclasses.replace(splits, train=Batch(*both))

    task = sm.task(name, tiny=True)
    recipe = dataclasses.replace(task.recipe, epochs=20)
    victim = sm.fit(dataclasses.replace(task, data=with_canary, recipe=recipe), device="cpu")
    canary, other = (task.loss(victim.served, batch).item() for batch in (planted, control))
    assert canary < 1 < 3 < other


def parts(batch: Batch) -> tuple[Tensor, Tensor]:
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(batch.target, Tensor)
    return batch.inputs, batch.target


# -- published weights ------------------------------------------------------------------------------------------------


def test_without_network_and_cache_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(name: str) -> None:
        raise OSError(f"We couldn't connect to load {name}\nand more lines")

    for part in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, part), "from_pretrained", refuse)
    task = sm.task("gpt2_pretrained", model="distilgpt2")
    assert repr(task) == "gpt2_pretrained(model='distilgpt2')"
    with pytest.raises(UsageError, match=r"^distilgpt2 is neither .* where there is a network, or give model="):
        task.build()
    with pytest.raises(UsageError, match="distilgpt2 is neither"):
        task.sample(successor, "Love", rng())


def test_published_weights_from_a_folder(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=4, n_layer=1, n_head=1)).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(50257, (2, 8), generator=rng())
    mine = sm.task("gpt2_pretrained", model=str(tmp_path)).build().eval()
    assert torch.allclose(mine(tokens), theirs(tokens).logits, atol=1e-5)
    assert mine.model.lm_head.weight is not mine.model.transformer.wte.weight, "tied weights"
    with pytest.raises(UsageError, match="neither a folder"):
        sm.task("gpt2_pretrained", model=str(tmp_path / "nothing")).build()


def test_a_model_with_other_tokens_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=65, n_positions=8, n_embd=4, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="knows 65 tokens"):
        sm.task("gpt2_pretrained", model=str(tmp_path)).build()


@pytest.mark.data
def test_the_published_models_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one token for each four characters in the place of GPT-2's tokeniser, which is not here."""
    import transformers

    class Fours:
        def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
            return {"input_ids": [sum(map(ord, text[i : i + 4])) for i in range(0, len(text), 4)]}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: Fours())
    splits = sm.task("gpt2_pretrained").draw(0)
    assert splits.test.inputs.shape == (200, 64)
    assert len(splits.train) > 3000
