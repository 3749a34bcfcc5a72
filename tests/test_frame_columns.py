"""Data frames with words and gaps: there and back, and a pipeline on one gets its card in one call."""

from typing import Any

import numpy as np
import pytest
import torch

from attacks import APGD, ColumnQueries, Knockoff, LossThreshold
from secure_ml.assess import assess
from secure_ml.errors import UsageError
from secure_ml.outside.columns import MOST, Columns
from tests.test_assess import finding, value

pandas = pytest.importorskip("pandas")


def people(n: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    """People with two numbers, gaps in one of them, two columns of words, and a name; and who is sent on."""
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "age": rng.integers(18, 80, n).astype(float),
            "income": rng.lognormal(10, 1, n).astype(np.float32),
            "work": rng.choice(["clerk", "nurse", "smith"], n),
            "town": pandas.Categorical(rng.choice(["A", "B", "C"], n), categories=["A", "B", "C", "never"]),
            "name": [f"p{i % (MOST + 10)}" for i in range(n)],
        }
    )
    sent = ((frame["age"] > 50) & (frame["work"] == "smith")) | (frame["town"] == "A")
    frame.loc[rng.random(n) < 0.1, "income"] = np.nan
    frame.loc[rng.random(n) < 0.1, "work"] = None
    return frame, np.where(sent, "yes", "no")


def pipeline(frame: Any, sent: np.ndarray) -> Any:
    """A forest behind what fills in numbers and encodes words."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    words = OneHotEncoder(handle_unknown="ignore")
    first = make_column_transformer((SimpleImputer(), ["age", "income"]), (words, ["work", "town"]))
    return make_pipeline(first, RandomForestClassifier(20, random_state=0)).fit(frame, sent)


def test_rows_stand_for_the_frame() -> None:
    frame, _ = people(200)
    columns = Columns.of([frame[:150], frame[150:]])
    assert columns is not None
    rows = columns.encode(frame)
    assert rows.dtype == torch.float32
    assert rows.shape == (200, 1 + 2 + 4 + 3 + 1)
    assert columns.groups == ((3, 4, 5, 6), (7, 8, 9))
    assert columns.frozen == (2, 10)
    assert rows[:, [3, 4, 5, 6]].sum(1).eq(1).all()
    back = columns.decode(rows)
    pandas.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert list(back["town"].dtype.categories) == ["A", "B", "C", "never"]
    assert back["work"].isna().sum() == frame["work"].isna().sum() > 0
    changed = rows.clone()
    changed[0, [3, 4, 5, 6]] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert columns.decode(changed)["work"][0] == "smith"


def test_frames_of_numbers_are_arrays() -> None:
    frame, _ = people(50)
    assert Columns.of([frame[["age"]]]) is None


def test_a_pipeline_on_words_gets_its_card() -> None:
    frame, sent = people(700)
    model = pipeline(frame[:300], sent[:300])
    attacks = (APGD(), ColumnQueries(queries=100), LossThreshold(), Knockoff(queries=50, net="dense", epochs=5))
    card = assess(model, (frame[:300], sent[:300]), (frame[300:], sent[300:]), attacks=attacks, name="people")
    assert value(card, "accuracy") == pytest.approx(model.score(frame[300:], sent[300:]), abs=0.05)
    assert value(card, "accuracy under Features(0.05, 1)") < 0.7
    assert value(card, "membership AUC") is not None
    assert value(card, "fidelity at 50 queries") > 0.5
    assert "gaps in income" in finding(card, "input box").evidence
    assert "codes of words for work, town" in finding(card, "input box").evidence
    chosen = assess(model, None, (frame[300:], sent[300:]), minutes=0.05)
    assert "ColumnQueries" in str(chosen), "the suite knows what to ask a table"


def test_what_is_no_column_is_refused_by_name() -> None:
    frame, sent = people(100)
    model = pipeline(frame, sent)
    when = frame.assign(when=pandas.Timestamp("2020-01-01"))
    with pytest.raises(UsageError, match=r"the column when holds datetime64.*: give it as numbers, or as words"):
        assess(model, None, (when, sent))
    with pytest.raises(UsageError, match=r"the frames have other columns: \['name'\]"):
        assess(model, (frame.drop(columns="name"), sent), (frame, sent))
    with pytest.raises(UsageError, match="box is for numbers: leave it out for a frame with words"):
        assess(model, None, (frame, sent), box=(0, 1))
