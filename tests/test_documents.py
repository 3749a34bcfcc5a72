"""The documents say what is there now, and their code runs."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.tables import DOCUMENTS, filled

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_drawn_from_the_records(document: Path) -> None:
    """If this fails: python -m benchmarks.tables."""
    assert filled(document.read_text()) == document.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_table_is_empty(document: Path) -> None:
    for name, drawn in re.findall(r"<!-- table (\S+) -->\n(.*?)<!-- end -->", document.read_text(), re.DOTALL):
        assert len(re.findall(r"^\|", drawn, re.MULTILINE)) > 2, name


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=["library", "own model"])
def test_code_in_the_readme_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    exec(code, scope)
    printed = capsys.readouterr().out
    assert "accuracy under Linf(" in printed
    assert "-DP" in printed


def test_the_two_commands() -> None:
    commands = [line for line in README.splitlines() if line.startswith("pip install")]
    assert commands == ["pip install -e . && secure-ml matrix", "pip install -e '.[test]' && pytest"]
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_the_example_in_contributing_is_the_file() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert code in (ROOT / "attacks" / "membership" / "loss_threshold.py").read_text()


def test_commands_in_the_readme_exist() -> None:
    assert shutil.which("secure-ml")
    named = set(re.findall(r"^secure-ml (\w+)", README, re.MULTILINE))
    scripts = {path.stem for path in (ROOT / "experiments").glob("[!_]*.py")}
    assert named <= scripts
