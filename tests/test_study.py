"""A study is a file: the same options, refused by name, overridden by flags; shown before it runs; kept anywhere."""

import json
import tomllib
import warnings
from pathlib import Path

import pytest

import secure_ml as sm
from attacks.membership.loss_threshold import LossThreshold
from experiments._catalog import groups
from experiments._main import main
from experiments._mlflow import log, metric_name
from experiments._study import as_options, read_study, split_file, studies, write_study
from experiments.matrix import Matrix, _asked, make_cells
from secure_ml.cells import Cell, Event, Store, run_cells
from secure_ml.costs import Costs, duration
from secure_ml.rows import Row
from secure_ml.shelf import Remote, shelf_at
from tests.laws import same, timeless, tiny_task

STUDY = """
task = ["digits_mlp(tiny=True)"]
defense = ["none", "label_only"]
attack = ["pgd", "loss_threshold"]
seeds = 1
workers = 1
examples = 20
json = true

[pgd]
steps = 3
"""


def refused(text: str, tmp_path: Path) -> str:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(sm.UsageError) as error:
        _asked([str(tmp_path / "study.toml")])
    return str(error.value)


def asked(*argv: str) -> str:
    """What a command line comes to, as a study."""
    options, catalog = _asked(argv)
    return write_study(options, catalog.configured)


def test_a_study_is_the_flags(tmp_path: Path) -> None:
    """A file means what its flags mean, a flag beside it counts more, and what is saved means the same again."""
    path, saved = tmp_path / "study.toml", tmp_path / "saved.toml"
    path.write_text(STUDY)
    flags = ["--task", "digits_mlp(tiny=True)", "--defense", "none", "label_only", "--attack", "pgd", "loss_threshold"]
    flags += ["--seeds", "1", "--workers", "1", "--examples", "20", "--json", "--pgd.steps", "3"]
    said = asked(*flags)
    assert asked(str(path)) == said
    assert tomllib.loads(said)["pgd"] == {"steps": 3}
    saved.write_text(said)
    more = tomllib.loads(asked(str(saved), "--seeds", "5", "--no-json", "--attack", "pgd"))
    assert more == {**tomllib.loads(said), "seeds": 5, "json": False, "attack": ["pgd"]}
    assert split_file([str(path), "--seeds", "5"]) == (str(path), ["--seeds", "5"])
    assert split_file(["--seeds", "5", f"--file={path}"]) == (str(path), ["--seeds", "5"])
    assert split_file(["--file", "x", "--seeds", "5"]) == ("x", ["--seeds", "5"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = 3", "study.toml: no option is called 'sedes'; did you mean seeds"),
        ("[pgd]\nstep = 3", "study.toml: no setting of pgd is called 'step'; did you mean steps"),
        ("[pdg]\nsteps = 3", "study.toml: no option is called 'pdg'; did you mean pgd"),
        ("file = 'other.toml'", "no option is called 'file'"),
        ("seeds = ", "study.toml is not TOML"),
        ("seeds = 2026-01-01", "seeds holds datetime.date(2026, 1, 1); expected text, numbers or a list of them"),
        ("seeds = 'three'", "invalid"),
    ],
)
def test_what_a_study_may_not_say(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(text, tmp_path)


def test_a_study_by_name() -> None:
    """Those that come along are read, and say nothing that the command does not know."""
    assert len(studies()) >= 4
    for name in studies():
        path, said = read_study(name)
        assert as_options(path, said, Matrix, groups())
        assert Path(path).read_text().splitlines()[0].endswith("?"), "a study answers a question"
    assert make_cells(*_asked(["stacking"]))
    with pytest.raises(sm.UsageError, match="no study is called 'leak'; did you mean leaks"):
        read_study("leak")
    with pytest.raises(sm.UsageError, match="--file names no file"):
        split_file(["--seeds", "1", "--file"])


@pytest.mark.slow
def test_shown_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run trains and writes nothing; after a run it knows what is found, and what more seeds will take."""
    path, out = tmp_path / "study.toml", tmp_path / "out"
    path.write_text(STUDY + "[token_swap]\n")
    argv = ["matrix", str(path), "--out", str(out), "--attack", "pgd", "loss_threshold", "token_swap"]
    assert main([*argv, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.exists()
    assert shown.count("waiting, of unknown cost") == 6
    assert shown.count("n/a: ") == 2
    assert shown.splitlines()[-1].startswith(
        "8 cells: 0 found, 2 n/a, 6 to compute, after training 1 model; on 1 worker"
    )
    assert main([*argv, "--save-file", str(tmp_path / "saved.toml")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "PGD(steps=3)" in {row["attack"] for row in rows}
    assert main(["matrix", str(tmp_path / "saved.toml"), "--seeds", "2", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| found") == 6
    assert "to compute, after training 1 model; on 1 worker: about" in shown.splitlines()[-1]
    assert main(["matrix", str(tmp_path / "saved.toml")]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def cells() -> list[Cell]:
    task = tiny_task("logistic_regression")
    return [Cell(task=task, defenses=(), attack=a, seed=s) for a in (None, LossThreshold()) for s in (0, 1)]


def test_a_store_anywhere(tmp_path: Path) -> None:
    """At a URL as in a folder: the same results, found again, and a folder that lacks its last file is a draft."""
    pytest.importorskip("fsspec")
    there, heard = Store(folder="memory://run"), list[Event]()
    first = run_cells(cells(), there, 1, heard.append)
    again = run_cells(cells(), there, 1, heard.append)
    assert [event.cells for event in heard if event.kind == "found"] == [0, 4]
    here = run_cells(cells(), Store(folder=tmp_path), 1, lambda event: None)
    assert same([timeless(r) for r in first], [timeless(r) for r in here])
    assert same([timeless(r) for r in again], [timeless(r) for r in here])
    shelf = there.shelf
    assert isinstance(shelf, Remote)
    name = f"cells/{there.jobs(cells())[0].name}"
    system, root = shelf._place()
    system.rm(f"{root}/{name}/done")
    assert not shelf.has(name)
    with pytest.raises(sm.UsageError, match="seen by one process only"):
        run_cells(cells(), there, 2, lambda event: None)
    costs = Costs("cpu", 1)
    costs.write(shelf)
    assert shelf.read("costs.jsonl") == ""
    shelf.write("costs.jsonl", "not JSON\n")
    assert Costs.read(shelf, "cpu", 1).seconds == {}


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://", "names no folder"), ("nope://x/y", "cannot be reached"), ("s3://b/run", "s3fs|boto|inst")],
)
def test_places_that_cannot_be(url: str, message: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(sm.UsageError, match=message):
        shelf_at(url)


def test_a_local_url_is_a_folder(tmp_path: Path) -> None:
    assert shelf_at(f"file://{tmp_path}") == shelf_at(tmp_path) == shelf_at(str(tmp_path))


def test_durations() -> None:
    assert [duration(s) for s in (0.25, 42.0, 600.0, 9000.0)] == ["0.2 s", "42 s", "10 min", "2.5 h"]


def test_options_of_a_cluster_are_for_a_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["matrix", "--task", "digits_mlp(tiny=True)", "--out", str(tmp_path), "--address", "auto"]
    assert main(argv) == 2
    assert "are for --executor ray" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stack is a run whose metrics are the pooled rows with their bounds."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the one that needs no more than the small package
    rows = [
        Row(task="t()", defenses="none", attack="", seeds=(0,), measure="accuracy", value=0.5, low=0.4, high=0.6),
        Row(task="t()", defenses="D()", attack="", seeds=(0,), measure="accuracy", value=None, note="n/a"),
    ]
    (tmp_path / "table.md").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log(rows, {"seeds": 3}, tmp_path, (tmp_path / "runs").as_uri(), "matrix")
        client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
        found = client.search_runs([client.get_experiment_by_name("secure-ml").experiment_id])
    metrics = {run.data.params["defenses"]: run.data.metrics for run in found}
    assert metrics == {"none": {"accuracy": 0.5, "accuracy low": 0.4, "accuracy high": 0.6}, "D()": {}}
    assert metric_name(rows[0], rows) == "accuracy"
