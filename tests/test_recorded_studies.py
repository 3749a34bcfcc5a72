"""Studies are recorded with the differences that answer them, against the stack that is their control."""

import pytest

from benchmarks import studies
from benchmarks.studies import STUDIES, Study, answers
from benchmarks.tables import RESULTS, draw
from secure_ml.rows import Row

CONTROL = "Homomorphic(encrypt=0)"


def rows() -> list[Row]:
    """Three victims each of three stacks: the control scores 0.1 less than the bare model."""
    values = {"none": 0.9, CONTROL: 0.8, "Homomorphic()": 0.8}
    return [
        Row(task="t", defenses=name, attack=attack, seeds=(seed,), measure=measure, value=value - seed / 100, unit=unit)
        for name, value in values.items()
        for seed in range(3)
        for measure, attack, unit in (
            ("accuracy", "", "share"),
            ("accuracy under Linf(0.1)", "PGD()", "share"),
            ("latency", "", "seconds"),
        )
    ]


def test_the_control_is_what_differences_are_from() -> None:
    found = answers(rows(), STUDIES["ciphertext-noise"])
    assert {(e["protection"], e["against"]) for e in found} == {("Homomorphic()", CONTROL)}
    assert {e["measure"] for e in found} == {"accuracy", "accuracy under Linf(0.1)"}
    assert all(e["verdict"] == "within noise" and e["victims"] == 3 and e["change"] == 0 for e in found)
    bare = answers(rows(), Study())
    assert all(e["change"] == pytest.approx(-0.1) for e in bare)
    assert len(bare) == 4


def test_unknown_studies_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    with pytest.raises(SystemExit, match="2"):
        studies.main([str(tmp_path), "leeks"])
    assert "no study is called 'leeks'" in capsys.readouterr().err


@pytest.mark.parametrize("name", STUDIES)
def test_each_is_recorded_and_drawn(name: str) -> None:
    assert (RESULTS / f"study-{name}.json").is_file()
    text = draw(f"study-{name}")
    assert "| verdict" in text
    assert "[" in text.rpartition("verdict")[2]
