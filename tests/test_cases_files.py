"""Test cases as files: written, read, replayed, collected by pytest; a case with a wrong number must fail."""

import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from experiments._case import SHIPPED, SUFFIX, Case, Expected, Paper, Recorded, find, read, write
from experiments._main import main
from experiments._replay import replay
from experiments.record import expected
from secure_ml.rows import Row

TASK = "digits_mlp(tiny=True)"
CASES = {path.name.removesuffix(SUFFIX): read(path) for path in find(("all",))}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case that was recorded from the command line."""
    path = tmp_path_factory.mktemp("cases") / "tiny.case.toml"
    argv = ["record", str(path), "--task", TASK, "--attack", "card", "fgsm", "--threat", "Linf(0.2)"]
    assert main([*argv, "--description", 'mit "Anführung" \\ und \x7f 模型']) == 0
    return path


def altered(path: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of a case in which the first such text is another."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    copy = folder / "altered.case.toml"
    copy.write_text(text.replace(old, new, 1), encoding="utf-8")
    return copy


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """What a case is marked with."""
    return [mark for mark, holds in ((pytest.mark.slow, case.slow), (pytest.mark.data, case.data)) if holds]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(case)) for name, case in CASES.items()])
def test_published_results(name: str) -> None:
    """Every case that is shipped is as expected."""
    done = replay(CASES[name])
    assert not done.moved, str(done)


def test_what_is_shipped_is_cited() -> None:
    assert len(CASES) >= 12
    assert sum(not case.slow for case in CASES.values()) >= 4
    for name, case in CASES.items():
        assert case.paper is not None, name
        assert re.match(r"https://(arxiv\.org/abs|eprint\.iacr\.org|doi\.org|github\.com)/", case.paper.link), name
        assert case.description, name
        assert case.paper.reports, name
        assert case.paper.here, name
        assert all(one.meets(one.value) for one in case.expect), name


@pytest.mark.parametrize("name", CASES)
def test_a_bound_lies_off_what_was_measured(name: str) -> None:
    """Unless it is exact, or one is a rounding error: another processor must not decide."""
    for one in CASES[name].expect:
        assert isinstance(one.value, float | int)
        for bound in (one.at_least, one.at_most):
            far = bound is None or abs(bound - one.value) > 0.03 or one.value < bound / 100
            assert far or bound == one.value, (name, one)


def test_cases_are_in_the_package() -> None:
    told = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    patterns = told["tool"]["setuptools"]["package-data"]["experiments"]
    packed = {path for pattern in patterns for path in SHIPPED.parent.glob(pattern)}
    assert packed >= set(find(("all",)))
    assert told["project"]["entry-points"]["pytest11"] == {"experiments._pytest": "experiments._pytest"}


def test_written_and_read(tmp_path: Path) -> None:
    """Everything that a case can hold comes back, texts of every kind included."""
    hard = 'quotes """ and \\ and \n lines, ' + "many words " * 30 + '\x7f \t größer 模型 "'
    case = Case(
        task=TASK,
        description=hard,
        defenses="LabelOnly() + DPSGD(noise=1.0)",
        attacks=("card", "PGD(steps=3)"),
        threat="Linf(0.1)",
        seed=3,
        examples=7,
        threads=2,
        slow=True,
        data=True,
        paper=Paper(citation=hard, link="https://arxiv.org/abs/1", reports="'", here='"'),
        recorded=Recorded(data="00", versions={"a b": "1"}, hardware="x", seconds=1.5),
        expect=(
            Expected(measure="a", value=1.0, tolerance=0.5),
            Expected(measure="b", value="FAIL", attack="PGD(steps=3)"),
            Expected(measure="c", value=2, at_least=1, at_most=3.5, why=hard),
        ),
    )
    write(case, tmp_path / "x.case.toml")
    assert read(tmp_path / "x.case.toml") == case
    assert max(map(len, (tmp_path / "x.case.toml").read_text().splitlines())) < 200


def test_the_tolerance() -> None:
    """The longer arm of the interval; 10 % without one, or where the high end is a claim; a verdict is a word."""
    row = Row(task="t()", defenses="none", attack="", seeds=(0,), measure="m")
    assert expected("card", replace(row, value=0.9, low=0.8, high=0.95)).tolerance == pytest.approx(0.1)
    assert expected("card", replace(row, value=-2.0)).tolerance == pytest.approx(0.2)
    assert expected("card", replace(row, value=2.0, low=2.0, high=8.0, unit="epsilon")).tolerance == pytest.approx(0.2)
    assert expected("card", replace(row, value=0.9, low=0.8, high=0.95), 0.01).tolerance == 0.01
    assert expected("card", replace(row, value=3.0, unit="verdict")).value == "FAIL"
    assert expected("card", row).value == "n/a"


@pytest.mark.parametrize(
    ("one", "got", "within"),
    [
        (Expected(measure="m", value=0.9, tolerance=0.1), 0.81, True),
        (Expected(measure="m", value=0.9, tolerance=0.1), 0.79, False),
        (Expected(measure="m", value=0.9), 0.9, True),
        (Expected(measure="m", value=0.9, at_least=0.5), 0.6, True),
        (Expected(measure="m", value=0.9, at_least=0.5), 0.4, False),
        (Expected(measure="m", value=0.9, at_least=0.5, at_most=0.8), 0.85, False),
        (Expected(measure="m", value=0.9, tolerance=1.0), "n/a", False),
        (Expected(measure="m", value=0.9, tolerance=1.0), None, False),
        (Expected(measure="m", value="n/a"), 0.9, False),
        (Expected(measure="m", value="PASS"), "PASS", True),
        (Expected(measure="m", value="PASS"), "FAIL", False),
    ],
)
def test_within(one: Expected, got: float | str | None, within: bool) -> None:
    assert one.meets(got) is within


def test_replay_of_what_was_recorded(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers to the last digit that is kept, and nothing else to tell."""
    assert main(["replay", str(recorded)]) == 0
    printed = capsys.readouterr().out
    assert "all 2 as expected" in printed
    assert "within  accuracy under Linf(0.2) by FGSM(): expected" in printed
    assert "other" not in printed
    assert read(recorded).description == 'mit "Anführung" \\ und \x7f 模型'
    exact = replace(read(recorded), expect=tuple(replace(one, tolerance=1e-6) for one in read(recorded).expect))
    assert not replay(exact).moved


def test_a_wrong_number_fails_and_says_what_moved(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = read(recorded).expect[0].value
    broken = altered(recorded, tmp_path, f"value = {value}", "value = 0.99")
    broken = altered(broken, tmp_path, '"torch" = "', '"torch" = "0.')
    assert main(["replay", str(broken), str(recorded)]) == 1
    printed = capsys.readouterr().out
    assert "altered: moved 1 of 2" in printed
    assert re.search(r"MOVED   accuracy: expected 0\.99 ± 0\.\d+, got 0\.\d+ \[", printed)
    assert re.search(r"other  torch: \S+, recorded with 0\.\S+", printed)
    assert "tiny: all 2 as expected" in printed


def test_update_keeps_bounds(recorded: Path, tmp_path: Path) -> None:
    """Another number, and everything else as it was."""
    value = read(recorded).expect[0].value
    stale = altered(recorded, tmp_path, f"value = {value}", "value = 0.99\nat_least = 0.01\nwhy = 'so'")
    assert main(["record", str(stale), "--update"]) == 0
    first = read(stale).expect[0]
    assert (first.value, first.at_least, first.why) == (value, 0.01, "so")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attacks =", "atacks =", "no key is called 'atacks'; did you mean attacks"),
        ("measure =", "mesure =", "no key is called 'mesure'; did you mean measure"),
        (f'task = "{TASK}"', "", "lacks task"),
        ('"card", ', "", "expects something of 'card', which is not among its attacks"),
        ("schema = 1", "schema = 2", "is of schema 2; this version reads 1"),
        ("schema = 1", 'schema = "1"', "schema must be of type int"),
        ("schema = 1", "schema = ", "is no TOML"),
        ("schema = 1", "examples = 0", "examples must be at least 1; given 0"),
        (TASK, "digits_mpl()", "no task is called 'digits_mpl'; did you mean digits_mlp"),
        (TASK, "digits_mlp()", "the data of digits_mlp() are not those of the case"),
        ('threat = "Linf(0.2)"', 'defenses = "dpsgd"', "no defense is called 'dpsgd'; did you mean dp_sgd"),
        ('data = "', 'data = "f', "find out what changed them, or replay with --other-data"),
    ],
)
def test_what_cannot_be_read_or_run(
    recorded: Path, tmp_path: Path, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and exit code 2."""
    assert main(["replay", str(altered(recorded, tmp_path, old, new))]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def test_other_data_may_be_allowed(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = altered(recorded, tmp_path, 'data = "', 'data = "f')
    assert main(["replay", str(foreign), "--other-data"]) == 0
    assert "other  data: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["replay"], "name a case: a file, a folder, all, or one of these: carlini_2019_canary_exposure"),
        (["replay", "goodfellow"], "no case is called 'goodfellow'; did you mean goodfellow_2015_fgsm"),
        (["replay", "nowhere/x.case.toml"], "there is no case nowhere/x.case.toml"),
        (["record", "x.case.toml"], "say which task to attack"),
        (["record", "x.case.toml", "--update"], "the case x.case.toml cannot be read: No such file"),
        (["record", "nowhere/x.case.toml", "--task", TASK], "there is no folder nowhere"),
    ],
)
def test_refusals(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_missing_data_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(task="text_embedding()", recorded=Recorded(data=""), expect=(Expected(measure="accuracy", value=1),))
    write(case, tmp_path / "x.case.toml")
    monkeypatch.setenv("SECURE_ML_DATA", str(tmp_path))
    assert main(["replay", str(tmp_path)]) == 2
    assert "put a tab-separated file" in capsys.readouterr().err


MINE = """
import secure_ml as sm
from dataclasses import replace

task = replace(sm.task("digits_mlp", tiny=True), name="mine")
given = {"model": task.build()}
"""


def test_a_task_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file is looked for beside the case, wherever the command runs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "cases").mkdir()
    (tmp_path / "models" / "own_model.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert main(["record", "cases/x.case.toml", "--task", "models/own_model.py:task"]) == 0
    assert read(Path("cases/x.case.toml")).task == "../models/own_model.py:task"
    monkeypatch.chdir(tmp_path / "models")
    assert main(["replay", "../cases"]) == 0
    alien = altered(tmp_path / "cases" / "x.case.toml", tmp_path / "cases", "own_model.py:task", "own_model.py:given")
    capsys.readouterr()
    assert main(["replay", str(alien)]) == 2
    assert "a case trains its model again, so it needs a Task" in capsys.readouterr().err


PLUGIN = ["-q", "-p", "experiments._pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
STRICT = "[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n"


def test_pytest_collects_cases(recorded: Path, tmp_path: Path) -> None:
    """One passes, one fails with what moved, one cannot be read; marks select.

    In a process of its own: pytest warns where it finds the package of a plugin imported already.
    """
    (tmp_path / "pytest.ini").write_text(STRICT)
    write(read(recorded), tmp_path / "good.case.toml")
    write(replace(read(recorded), slow=True), tmp_path / "slow.case.toml")
    value = read(recorded).expect[0].value
    altered(recorded, tmp_path, f"value = {value}", "value = 0.99")
    (tmp_path / "unknown.case.toml").write_text("atacks = 1")
    options = ["-m", "not slow", "--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-c", str(tmp_path / "pytest.ini"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    printed = done.stdout
    assert done.returncode == 1, printed + done.stderr
    assert "1 failed, 1 passed, 1 deselected, 1 error" in printed, printed
    assert "no key is called 'atacks'; did you mean attacks" in printed
    assert "altered.case.toml: 1 of 2 measurements moved" in printed
    assert "MOVED   accuracy: expected 0.99" in printed
    assert "Traceback" not in printed


def test_the_plugin_leaves_other_projects_alone(tmp_path: Path) -> None:
    """Nothing heavy is imported, and no other TOML is touched."""
    (tmp_path / "pytest.ini").write_text(STRICT)
    (tmp_path / "other.toml").write_text("[[nonsense")
    (tmp_path / "case.toml").write_text("[[nonsense")
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n    assert 'secure_ml' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", *PLUGIN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
