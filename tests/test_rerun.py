"""A run that is done is looked up and drawn again, without loading what only training and drawing anew need."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import secure_ml as sm
from attacks.extraction.knockoff import Knockoff
from experiments import matrix
from secure_ml import data
from secure_ml.interactions import paired
from secure_ml.report import verdict
from secure_ml.stats import clopper_pearson, over_seeds
from secure_ml.tasks import _digits
from tests.laws import tiny_task

ROOT = Path(__file__).parent.parent
ARGV = [
    *("--task", "digits_mlp(tiny=True)", "--defense", "none", "label_only", "--attack", "pgd(steps=2)"),
    *("loss_threshold", "--seeds", "2", "--workers", "1", "--examples", "20"),
]
NEEDLESS = ("sklearn", "scipy.stats", "scipy.optimize", "matplotlib", "pandas", "pyarrow", "opacus", "torchvision")
LISTS = "import json, sys; from experiments import matrix; code = matrix.main(sys.argv[1:]); " + (
    "print(json.dumps([code, sorted(sys.modules)]))"
)


def test_what_is_done_is_shown_without_heavy_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*ARGV, "--out", str(tmp_path)]
    assert matrix.main(asked) == 0
    said, rows = capsys.readouterr().out, (tmp_path / "rows.jsonl").read_bytes()
    plots = {path: path.stat().st_mtime_ns for path in (*tmp_path.glob("*.png"), tmp_path / "rows.csv")}
    assert len(plots) == 3
    done = subprocess.run([sys.executable, "-c", LISTS, *asked], cwd=ROOT, capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert not set(NEEDLESS) & set(loaded)
    assert "torch" in loaded, "the list of what was loaded is no list"
    assert done.stdout.startswith(said)
    assert (tmp_path / "rows.jsonl").read_bytes() == rows
    assert {path: path.stat().st_mtime_ns for path in plots} == plots


def test_a_plot_of_other_rows_is_drawn_anew(tmp_path: Path) -> None:
    from experiments._plots import draw

    row = sm.Row(task="t", defenses="none", attack="", seeds=(0,), measure="accuracy", value=0.9, low=0.8, high=0.95)
    rows = [row, replace(row, measure="accuracy under pgd", value=0.5)]
    (path,) = draw(rows, tmp_path)
    before = path.read_bytes()
    path.write_bytes(before[:-20])  # as a killed call may leave it
    draw(rows, tmp_path)
    assert path.read_bytes() == before
    draw([row, replace(rows[1], value=0.4)], tmp_path)
    assert path.read_bytes() != before


def test_digits_are_sklearns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    mine = _digits.digit_images()
    assert isinstance(mine.inputs, torch.Tensor)
    assert torch.equal(mine.inputs.flatten(1), torch.tensor(pixels, dtype=torch.float32) / 16)
    assert torch.equal(mine.target, torch.tensor(labels))
    monkeypatch.setattr(_digits, "FILE", "elsewhere.csv.gz")
    other = _digits.digit_images()
    assert torch.equal(other.inputs, mine.inputs)
    assert torch.equal(other.target, mine.target)
    assert data.split(other, torch.Generator(), validation=1, test=1, aux=1).fingerprint()


@pytest.mark.parametrize("n", [1, 7, 600])
def test_intervals_are_scipys(n: int) -> None:
    """The quantiles that are asked for are those of scipy.stats, which takes long to load."""
    for k in range(0, n + 1, max(n // 9, 1)):
        found = clopper_pearson(k, n)
        low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        np.testing.assert_allclose((found.low, found.high), (low, high), rtol=1e-12)


def test_means_are_scipys() -> None:
    values = [0.3, 0.5, 0.45, 0.7]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = over_seeds(values)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-12)
    difference = paired(values)
    assert difference.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-12)


def test_victims_that_nothing_transfers_to_are_pooled_with_the_others() -> None:
    """Where no example is answered rightly there is no row of transfer, and of the others' there is still a mean."""
    victim = sm.fit(tiny_task("digits_mlp"), seed=0, device="cpu")
    attack = Knockoff(queries=20, epochs=1)
    whole = attack.evaluate(victim, threat=None, seed=0, examples=20)
    moved = [row for row in whole.rows if row.measure.startswith("transfer")]
    assert moved
    bare = replace(whole, rows=tuple(replace(row, seeds=(1,)) for row in whole.rows if row not in moved))
    pooled = verdict(victim.task, [(attack, bare), (attack, whole)])
    fidelity = [row for row in pooled if row.measure.startswith("fidelity")]
    assert fidelity[0].seeds == (0, 1)
