"""The command line as its users meet it: what it prints, and how it refuses."""

import json
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from experiments._catalog import parse
from experiments._main import main
from experiments._options import Running

TINY = ["--task", "digits_mlp(tiny=True)", "--seeds", "2", "--workers", "1"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which a request is refused."""
    assert main(list(argv)) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("secure-ml: "), "more than one sentence"
    return printed.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["matrx"], "no command is called 'matrx'; did you mean matrix?"),
        (["matrix", "--task", "digit_cnn"], "no task is called 'digit_cnn'; did you mean digits_cnn"),
        (["matrix", "--task", "digits_cnn(widht=3)"], "no option of digits_cnn is called 'widht'"),
        (["matrix", "--defense", "dpsgd"], "no defense is called 'dpsgd'; did you mean dp_sgd"),
        (["matrix", "--defense", "dp_sgd(epsilon=-1)"], "epsilon above 0; given -1"),
        (["matrix", "--defense", "dp_sgd(eps=1)"], "no setting of the defense DPSGD is called 'eps'"),
        (["matrix", "--defense", "dp_sgd+"], "is not of the form"),
        (["matrix", "--attack", "pdg"], "no attack is called 'pdg'; did you mean pgd"),
        (["matrix", "--attack", "knockoff(queries=0)"], "at least 1 query"),
        (["matrix", "--threat", "Linf(-1)"], "radius of at least 0"),
        (["matrix", "--threat", "L7(1)"], "no attack, defense or threat is called 'L7'"),
        (["matrix", "--threat", "1"], "'1' is not a threat"),
        (["matrix", "--threat", "PGD()"], "is not a threat"),
        (["matrix", "--threat", "Linf(0)"], "allows no change at all"),
        (["matrix", "--defense", "adversarial_training(radius=0)"], "changes nothing"),
        (["matrix", "--attack", "pgd(steps=2.5)"], "PGD: steps must be of type int; given 2.5"),
        (["matrix", "--attack", "knockoff(reveal='probs')"], "reveal must be of type"),
        (["matrix", "--attack", "pgd(step_size=0.5)"], "longer than the radius"),
        (["matrix", "--task", "digits_cnn(width=0)"], "width of at least 1"),
        (["matrix", "--task", "mnist_cnn(activation='gelu')"], "activation must be of type"),
        (["matrix", "--workers", "0"], "--workers must be at least 1"),
        (["matrix", "--seeds", "0"], "--seeds must be at least 1"),
        (["matrix", "--data-dir", "nowhere"], "there is no data directory nowhere"),
        (["fit", "digits_mlp(tiny=True)", "--defense", "dp_sgd(delta=0.5)"], "is not below 1/n"),
        (["fit", "digits_mlp", "--dp-sgd.epsilon", "-1", "--defense", "dp_sgd"], "epsilon above 0"),
        (["fit", "linear_regression", "--defense", "label_only"], "linear_regression answers Values"),
        (["fit", "digits_mlp(tiny=True)", "--device", "tpu"], "tpu"),
        (["fit", "digits_mlp(tiny=True)", "--epochs", "0"], "at least 1 epoch; given 0"),
        (["fit", "digits_mlp(tiny=True)", "--patience", "0"], "patience of at least 1 epoch; given 0"),
        (["sample", "digits_mlp(tiny=True)"], "digits_mlp makes nothing to show"),
        (["matrix", "--sedes", "3"], "Unrecognized options: --sedes, 3; did you mean --seeds"),
        (["matrix", "--dp-sgd.epsilon", "abc"], "could not convert string to float: 'abc'; secure-ml matrix --help"),
    ],
)
def test_refusals(argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = " ".join(refused(capsys, *argv, *(["--out", str(tmp_path / "out")] if argv[0] != "matrx" else [])).split())
    assert message in text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_unwritable_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to" in refused(capsys, "matrix", *TINY, "--out", str(tmp_path / "file" / "run"))


def test_missing_and_truncated_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURE_ML_DATA", str(tmp_path))
    out = ["--out", str(tmp_path / "out")]
    assert "put a tab-separated file" in refused(capsys, "fit", "text_embedding", *out)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03\x00\x00")
    assert "put its four *-ubyte files there" in refused(capsys, "fit", "mnist_cnn", *out)
    (tmp_path / "text").mkdir()
    for part in ("train", "dev", "test"):
        (tmp_path / "text" / f"sst2_{part}.tsv").write_text("label\ttext\n1\tgood\nx")
    assert "is not whole" in refused(capsys, "fit", "text_embedding", *out)


def test_matrix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The table, the files, the same rows again, and a corrupt cell."""
    argv = ["matrix", *TINY, "--out", str(tmp_path / "run"), "--defense", "none", "dp_sgd(noise=1.0)", "label_only"]
    argv += ["--knockoff.queries", "20", "--json"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measures = {row["measure"] for row in rows}
    assert {"accuracy", "membership AUC", "fidelity at 20 queries", "accuracy under Linf(0.1)"} <= measures
    assert {row["defenses"] for row in rows} == {"none", "DPSGD(noise=1.0)", "LabelOnly()"}
    assert all(row["pooled"] and row["seeds"] == [0, 1] for row in rows)
    folder = tmp_path / "run"
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()} - {".parquet"}  # where pyarrow is there
    assert kinds == {".csv", ".html", ".json", ".jsonl", ".md", ".png", ".safetensors"}
    assert len(list(folder.glob("*.png"))) == 2
    assert len(list((folder / "models").iterdir())) == 4
    lines = (folder / "rows.jsonl").read_text()
    assert main(argv) == 0
    assert (folder / "rows.jsonl").read_text() == lines
    capsys.readouterr()
    cell = next((folder / "cells").iterdir()) / "rows.json"
    cell.write_text("{")
    assert "is corrupt: delete that folder" in refused(capsys, *argv)


def test_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [
        "fit",
        "digits_mlp(tiny=True)",
        "--defense",
        "dp_sgd",
        "--dp-sgd.noise",
        "1.5",
        "--out",
        str(tmp_path / "m"),
    ]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "noise 1.5" in printed
    assert "DPSGD(noise=1.5)" in printed
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["victim.json", "weights.safetensors"]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in known["attacks"]} >= {"pgd", "token_swap", "loss_threshold", "knockoff"}
    for entry in known["tasks"] + known["attacks"] + known["defenses"]:
        assert entry["description"]
        assert all(option["description"] for option in entry["options"])
    assert main(["list"]) == 0
    assert "dp_sgd" in capsys.readouterr().out


def test_data_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CSV and an NPZ are data sets; what cannot be one is refused in a sentence."""
    rng = np.random.default_rng(0)
    x = rng.random((120, 3))
    y = (x[:, 0] > x[:, 1]).astype(int)
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    lines = ["a,b,c,class", *(",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True))]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    for name, more in (("mine.npz", ""), ("mine.csv", ", target='class'")):
        task = f"table_mlp(path={str(tmp_path / name)!r}{more})"
        assert main(["fit", task, "--out", str(tmp_path / "out")]) == 0
        assert "accuracy" in capsys.readouterr().out
    for bad, message in (
        (f"table_mlp(path={str(tmp_path / 'none.csv')!r})", "there is no data file"),
        (f"table_mlp(path={str(tmp_path / 'mine.csv')!r}, target='z')", "no column called 'z'"),
        (f"table_mlp(path={str(tmp_path / 'mine.npz')!r}, target='z')", "no array called 'z'"),
    ):
        assert message in refused(capsys, "fit", bad, "--out", str(tmp_path / "out"))
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:100])
    assert "cannot be read" in refused(capsys, "fit", f"table_mlp(path={str(tmp_path / 'mine.npz')!r})")


def test_a_reader_that_leaves() -> None:
    """``secure-ml list | head -1`` ends without a traceback."""
    command = f"{sys.executable} -u -m experiments._main list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "tasks:\n"
    assert done.stderr == ""


def test_the_installed_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments._main", "nope"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("secure-ml: no command is called 'nope'")


@pytest.mark.parametrize("name", ["robustness", "privacy", "extraction", "encryption"])
def test_how_a_table_is_filled_is_asked_for_alike(name: str) -> None:
    """The options that these commands share, by the same words, in whatever group they stand."""
    script = import_module(f"experiments.{name}")
    mine = [kind for kind in vars(script).values() if is_dataclass(kind) and kind.__module__ == script.__name__]
    (command,) = [kind for kind in mine if "running" in kind.__dataclass_fields__]
    words = "--seed 3 --device cpu --threads 2 --workers 4 --out there --data-dir here --json".split()
    gates = ["--fail-if", "accuracy < 1", "--fail-if", "x > 2"]
    asked, _ = parse(command, ["--seeds", "5", *words, *gates], f"secure-ml {name}")
    said = Running(
        seed=3, device="cpu", threads=2, workers=4, out=Path("there"), data_dir=Path("here"), json=True,
        fail_if=("accuracy < 1", "x > 2"),
    )  # fmt: skip
    assert (asked.seeds, asked.running) == (5, said)
    assert parse(command, [], "")[0].running == Running(out=Path("runs") / name)
