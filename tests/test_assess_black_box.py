"""Models from outside that only answer: pipelines, functions, and services get their card by asking."""

from typing import Any

import numpy as np
import pytest
import torch

import secure_ml as sm
from attacks import PGD, HopSkipJump, Knockoff, LossThreshold, Square
from attacks.scrutiny.evasion_checks import EvasionChecks
from secure_ml.assess import assess
from secure_ml.errors import UsageError
from secure_ml.randomness import generator
from tests.test_assess import TEST, finding, points, quick, simple, value


def test_a_black_box_is_asked_and_says_why_the_rest_is_missing() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = (part.numpy() for part in points(80, 5))
    names = np.array(["left", "right"])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=100)).fit(100 * x, names[y])
    test = 100 * TEST[0].numpy(), names[TEST[1]]
    attacks = (PGD(), Square(queries=50), HopSkipJump.tiny(), EvasionChecks(), LossThreshold())
    card = assess(model, (100 * x, names[y]), test, attacks=attacks, name="pipeline")
    why = "pipeline is a scikit-learn Pipeline, which only answers: it has no weights to look into"
    assert card.missing == (f"PGD() (none): {why}", f"EvasionChecks() (none): {why}")
    assert value(card, "accuracy") > 0.9
    assert value(card, "accuracy under Linf(0.05)") <= value(card, "accuracy")
    assert value(card, "membership AUC") is not None
    assert "0 = left, 1 = right" not in str(card), "the estimator knows its own labels"


def test_the_probabilities_of_a_pipeline_are_the_pipeline() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = (part.numpy() for part in points(80, 5))
    model = LogisticRegression(C=100).fit(x, y)
    whole, part, other = (
        assess(which, (x, y), TEST, attacks=(Square(queries=20),))
        for which in (model, model.predict_proba, lambda rows: model.predict_proba(rows))
    )
    measured = [[row.value for row in card.card if row.unit == "share"] for card in (whole, part, other)]
    assert len(measured[0]) > 2
    assert measured[0] == measured[1] == measured[2]
    assert finding(part, "model").evidence == "a scikit-learn LogisticRegression, which only answers"
    assert "the function" in finding(other, "model").evidence


def test_words_are_asked_about_where_there_is_nothing_to_look_into() -> None:
    """A function of token numbers gets its card; what a copy would need stands in its place."""

    def answers(inputs: dict[str, np.ndarray]) -> np.ndarray:
        good = ((inputs["ids"] > 10) * inputs["mask"]).sum(1) / inputs["mask"].sum(1)
        return np.stack([1 - good, good], 1)

    rng = generator(0, "texts")
    ids = torch.randint(3, 18, (80, 6), generator=rng)
    ids[:, 0], ids[:, -1] = 1, 0
    mask = (ids > 0).long()
    labels = (((ids > 10) * mask).sum(1) / mask.sum(1) > 0.5).long()
    texts = [{"ids": i, "mask": m, "labels": int(y)} for i, m, y in zip(ids, mask, labels, strict=True)]
    card = assess(answers, texts[:30], texts[30:], minutes=0.05, name="spoken")
    assert value(card, "accuracy under Edits(2)") < value(card, "accuracy") == 1.0
    assert any(row.attack.startswith("WordQueries(") and row.value is not None for row in card.rows)
    (row,) = (row for row in card.card if row.measure == "extraction")
    assert row.note == "this trains models of the same kind: give build= and recipe="
    assert finding(card, "tokens").verdict == "WARN"


def test_a_frame_with_words_in_it_names_its_columns() -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.linear_model import LogisticRegression

    x, y = (part.numpy() for part in points(80, 5))
    frame = pandas.DataFrame(x, columns=list("abcd")).assign(kind="small", size="large")
    with pytest.raises(UsageError, match=r"train holds the columns kind \(\w+\), size \(\w+\), which are no numbers"):
        assess(lambda rows: rows, (frame, y), (frame, y))
    with pytest.raises(UsageError, match="a scikit-learn LogisticRegression cannot be asked: "):
        assess(LogisticRegression().fit(x, y), (frame, y), (frame, y))


def test_what_was_sent_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_ml.outside import endpoint

    def served(self: Any, body: bytes) -> str:
        import json

        return json.dumps({"outputs": simple()(torch.tensor(json.loads(body)["inputs"])).softmax(-1).tolist()})

    monkeypatch.setattr(endpoint.Remote, "_send", served)
    remote = sm.Endpoint(url="http://model", limit=1500)
    card = quick(remote, attacks=(LossThreshold(), Square(queries=50), Knockoff(queries=30, net="dense", epochs=2)))
    assert value(card, "inputs sent") == sum(row.value for row in card.rows if row.measure == "inputs sent")
    assert 1000 < value(card, "inputs sent") <= 1500
    assert any("exceed the 1500 that the endpoint allows" in line for line in card.missing)
