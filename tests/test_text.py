"""The document models of texts: words, gaps, masks, and where their data come from."""

from pathlib import Path

import pytest
import torch

import secure_ml as sm
from secure_ml.batch import Batch
from secure_ml.tasks import _texts
from tests.laws import tiny_task

MODELS = ["text_embedding", "text_rnn", "text_transformer", "bert_text"]


def test_words_stand_alone() -> None:
    spoken = _texts.words("It isn't Bob's film; well-made, though!")
    assert spoken == ["it", "is", "n't", "bob", "'s", "film", ";", "well", "-", "made", ",", "though", "!"]
    assert _texts.words("it is n't bob 's") == _texts.words("It isn't Bob's")


def test_dropped_words_leave_gaps() -> None:
    batch = Batch(torch.arange(1, 2001).reshape(50, 40), torch.zeros(50))
    thin = _texts.drop_words(0.3, batch, torch.Generator().manual_seed(0))
    gone = thin.inputs == 0
    assert 0.27 < gone.float().mean() < 0.33
    assert torch.equal(thin.inputs[~gone], batch.inputs[~gone])
    assert torch.equal(_texts.drop_words(0.0, batch, torch.Generator()).inputs, batch.inputs)


@pytest.mark.parametrize("name", MODELS)
def test_padding_does_not_matter(name: str) -> None:
    """What follows the last word changes nothing, and the place where a word stands does where order is read."""
    module = tiny_task(name).build().eval()
    tokens = torch.tensor([[5, 9, 3, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        assert torch.allclose(module(tokens), module(tokens[:, :3]), atol=1e-6)
        swapped = module(tokens[:, [2, 1, 0, 3, 4, 5, 6, 7]])
    assert torch.allclose(module(tokens), swapped, atol=1e-6) == (name == "text_embedding")


@pytest.mark.parametrize("name", MODELS)
def test_options_make_the_task_again(name: str) -> None:
    task = sm.task(name, data="trec", vocabulary=128)
    assert repr(task) == f"{name}(data='trec', vocabulary=128)"
    assert task.build()(torch.ones(2, 20, dtype=torch.long)).shape == (2, 6)
    with pytest.raises(sm.UsageError, match="must be of type"):
        sm.task(name, data="imdb")


def test_the_files_of_each_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECURE_ML_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    with pytest.raises(sm.UsageError, match="the columns coarse and text"):
        _texts.read("trec", "trec_train", 100)
    (tmp_path / "text" / "trec_train.tsv").write_text("coarse\tfine\ttext\nNUM\tdate\tWhen was it ?\n")
    (tmp_path / "text" / "ag_news_test.tsv").write_text("label\ttitle\tdescription\n3\tOne\ttwo\n")
    questions, news = _texts.read("trec", "trec_train", 100), _texts.read("ag_news", "ag_news_test", 100)
    assert (questions.target.item(), news.target.item()) == (5, 3)
    assert questions.inputs.shape == (1, 20)
    assert (news.inputs != 0).sum() == 2
    (tmp_path / "text" / "trec_train.tsv").write_text("coarse\tfine\ttext\nWHY\tdate\tWhen was it ?\n")
    with pytest.raises(sm.UsageError, match="is not whole"):
        _texts.read("trec", "trec_train", 100)
