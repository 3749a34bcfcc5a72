"""The short documents on gates, claims and cases: their code runs, their commands and conditions can be read."""

import re
import shlex
from pathlib import Path

import pytest

from experiments._case import SUFFIX, find, read
from secure_ml.gate import conditions

DOCS = Path(__file__).parent.parent / "docs"
NAMES = ("gate", "claims", "reproduce")
TEXT = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}


def blocks(name: str, language: str = "") -> list[str]:
    """The fenced blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[name], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_code_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(name, "python")
    exec(code, {})
    assert capsys.readouterr().out


def test_what_the_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks("gate", "python")[0], {})
    failed, passed = capsys.readouterr().out.splitlines()
    assert failed.startswith("failed robust_accuracy@linf:0.1 by PGD() is ")
    assert passed.startswith("passed accuracy is ")


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_conditions(name: str) -> None:
    scripts = {path.stem for path in (DOCS.parent / "experiments").glob("[!_]*.py")}
    lines = [line for line in re.findall(r"secure-ml [^`\n]*", TEXT[name]) if line.split()[1] != "0.1.0"]
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[1] in scripts, line
        conditions(words[place + 1] for place, word in enumerate(words) if word == "--fail-if")
    assert lines or name == "claims"


def test_the_case_in_the_document_is_one(tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIX}"
    path.write_text(blocks("reproduce", "toml")[0], encoding="utf-8")
    case = read(path)
    assert case.expect[1].at_most == 0.1
    assert case.recorded.data == read(find(("goodfellow_2015_fgsm",))[0]).recorded.data


def test_all_shipped_cases_are_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| \[.*?\]\((\S+?)\) \| (.*?) \|$", TEXT["reproduce"], re.MULTILINE)
    shipped = [(path.name.removesuffix(SUFFIX), read(path)) for path in find(("all",))]
    assert listed == [(name, case.paper.link if case.paper else "", case.description) for name, case in shipped]
