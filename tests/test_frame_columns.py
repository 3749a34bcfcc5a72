"""Data frames with words and gaps: there and back, and a pipeline on one gets its card in one call."""

from typing import Any

import numpy as np
import pytest
import torch

from attacks import APGD, BoundaryDistance, ColumnQueries, Knockoff, LossThreshold
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


def pipeline(frame: Any, sent: np.ndarray, handle_unknown: str = "ignore") -> Any:
    """A forest behind what fills in numbers and encodes words."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    words = OneHotEncoder(handle_unknown=handle_unknown)
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


@pytest.mark.parametrize(
    ("column", "width"),
    [
        (pandas.Series(["a", np.nan, "b", "a"], dtype=object), 3),
        (pandas.Series(["a", None, "b", "a"], dtype=object), 3),
        (pandas.Series(["a", None, "b", "a"], dtype="string"), 3),
        (pandas.Series([True, False, True, True]), 2),
        (pandas.Series([True, None, False, True], dtype="boolean"), 3),
        (pandas.Series([3, 17, 50, 17]), 1),
        (pandas.Series([3, None, 50, 17], dtype="Int64"), 2),
        (pandas.Series([None] * 4, dtype="Int64"), 2),
        (pandas.Series([0.5, np.nan, 2.5, 1.0]), 2),
        (pandas.Series([1700000040, 16777217, 5, 5]), 3),
        (pandas.Series([1, "a", 2.5, None], dtype=object), 4),
        (pandas.Series(["x"] * 4, dtype=object), 1),
        (pandas.Series(pandas.Categorical([1, 5, None, 5], categories=[5, 1, 9])), 3),
    ],
    ids=str,
)
def test_a_column_of_any_kind_comes_back(column: Any, width: int) -> None:
    frame = column.to_frame("c").assign(w=["u", "v", "u", "v"])
    frame.index = [7, 3, 9, 1]
    columns = Columns.of([frame])
    assert columns is not None
    rows = columns.encode(frame)
    assert rows.shape == (4, width + 2)
    back = columns.decode(rows)["c"]
    pandas.testing.assert_series_equal(back, column.rename("c"), check_index=False)
    for mine, theirs in zip(back.tolist(), column.tolist(), strict=True):
        assert type(mine) is type(theirs), "a gap is written as it was"
    assert len(columns.decode(rows + 1000)) == 4, "what no frame holds is read as something near"


def test_frames_of_numbers_are_arrays() -> None:
    frame, _ = people(50)
    assert Columns.of([frame[["age"]]]) is None


def test_columns_are_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(200, 3)), columns=list("abc"))
    sure = (frame["a"] > 0).to_numpy()
    model = LogisticRegression(C=1e4).fit(frame, sure)
    mixed = frame[["c", "b", "a"]]
    card = assess(model, (frame[:100], sure[:100]), (mixed[100:], sure[100:]), attacks=(LossThreshold(),))
    assert value(card, "accuracy") == pytest.approx(model.score(frame[100:], sure[100:]), abs=0.05)
    with pytest.raises(UsageError, match="test lacks columns that the model was fitted on: c"):
        assess(model, None, (frame[["b", "a"]], sure))


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
    assert "codes of words and of their absence for work, town" in finding(card, "input box").evidence
    chosen = assess(model, None, (frame[300:], sent[300:]), minutes=0.05)
    assert "ColumnQueries" in str(chosen), "the suite knows what to ask a table"


def test_encoders_that_refuse_what_they_never_saw_are_not_asked_about_it() -> None:
    """Codes that are whole numbers, as they are and with gaps, behind an encoder with its default settings."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {name: rng.choice([0, 3, 7, 50, 90, 100], 300) for name in ("code", "gappy")}
        | {"flag": rng.integers(0, 2, 300), "w": rng.choice(["a", "b"], 300)}
    )
    sure = ((frame["code"] > 20) & (frame["w"] == "a")).to_numpy()
    frame["gappy"] = frame["gappy"].where(rng.random(300) > 0.2)
    gappy = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    first = make_column_transformer((OneHotEncoder(), ["code", "flag", "w"]), (gappy, ["gappy"]))
    model = make_pipeline(first, RandomForestClassifier(20, random_state=0)).fit(frame, sure)
    attacks = (ColumnQueries(queries=60), BoundaryDistance(search="noise", queries=20))
    card = assess(model, (frame[:150], sure[:150]), (frame[150:], sure[150:]), attacks=attacks)
    assert card.missing == ()
    assert value(card, "accuracy under Features(0.05, 1)") < 0.9
    assert "code, gappy, flag whole" in finding(card, "input box").evidence


def test_what_is_no_column_is_refused_by_name() -> None:
    frame, sent = people(100)
    model = pipeline(frame, sent)
    when = frame.assign(when=pandas.Timestamp("2020-01-01"))
    with pytest.raises(UsageError, match=r"the column when holds datetime64.*: give it as numbers, or as words"):
        Columns.of([when])
    with pytest.raises(UsageError, match="train lacks columns that the model was fitted on: name"):
        assess(model, (frame.drop(columns="name"), sent), (frame, sent))
    with pytest.raises(UsageError, match="the frames have other columns: name"):
        Columns.of([frame, frame.drop(columns="name")])
    with pytest.raises(UsageError, match="two columns of one name: age"):
        Columns.of([frame[["age", "work", "age"]]])
    with pytest.raises(UsageError, match="the column name holds lists or the like"):
        Columns.of([frame.assign(name=[[1]] * 100)])
    with pytest.raises(UsageError, match="the column age holds complex128"):
        Columns.of([frame.assign(age=1j)])
    strange, _ = people(400)
    strange.loc[399, "work"] = "pilot"
    strict = pipeline(frame, sent, handle_unknown="error")
    with pytest.raises(UsageError, match="Pipeline cannot be asked: ValueError: Found unknown categories"):
        assess(strict, None, (strange, np.array(["yes", "no"] * 200)))
    with pytest.raises(UsageError, match="box is for numbers: leave it out for a frame with words"):
        assess(model, None, (frame, sent), box=(0, 1))
