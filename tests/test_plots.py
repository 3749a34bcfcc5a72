"""The documents' plots of curves, from the records of runs on MNIST."""

from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.plots import curves_of, recorded


def test_curves_are_those_of_the_record() -> None:
    rows = recorded("robustness-mnist_cnn")
    curves = curves_of(rows)
    stacks = list(dict.fromkeys(row.defenses for row in rows))
    assert list(dict.fromkeys(curve.defenses for curve in curves)) == stacks
    for curve in curves:
        assert curve.radii == [0.0, 0.1, 0.2, 0.3]
        assert all(row.measure.endswith(f"Linf({radius})") for radius, row in zip(curve.radii, curve.rows, strict=True))
    of_bare = [curve.attack for curve in curves if curve.defenses == "none"]
    assert of_bare == ["FGSM()", "PGD()", "AutoAttack()", "worst case"]
    assert sum(curve.attack == "certified" for curve in curves) == 1
    assert sum(len(curve.rows) for curve in curves) == sum(row.unit != "verdict" for row in rows), "none is left out"


def test_all_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "DOCS", tmp_path)
    plots.main()
    drawn = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(drawn) == {"robustness.png", "privacy.png", "extraction.png", "encryption.png"}
    assert min(drawn.values()) > 50_000
