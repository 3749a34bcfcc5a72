"""``secure-ml assess``, and the document that shows how a model is assessed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments._main import main

ROOT = Path(__file__).parent.parent


# The command


MODEL = '''
"""A model to assess."""
import torch
from tests.test_assess import TEST, TRAIN, simple
import secure_ml as sm

def card():
    return dict(model=simple(), train=TRAIN, test=TEST, box=(0, 1), attacks=ATTACKS, defenses=())

from attacks import PGD, LossThreshold
ATTACKS = (PGD(steps=3), LossThreshold())
task = sm.Task(name="mine", build=simple, data=lambda rng: sm.Splits(*[sm.Batch(*TRAIN)] * 4), threat=sm.Linf(0.1),
               recipe=sm.Recipe(epochs=1))
odd = {"modle": 1}
lost = {"train": 1}
'''


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "my_model.py").write_text(MODEL)

    def run(name: str, *words: str) -> tuple[int, str, str]:
        place = ["--out", str(tmp_path / "out"), "--device", "cpu"]
        code = main(["assess", f"{tmp_path}/{name}", *place, *words])
        return code, *capsys.readouterr()

    return run


def test_the_command(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = command("my_model.py:card")
    assert code == 0
    assert re.search(r"input box: \[0, 1\] as given.*accuracy under Linf\(0.05\)", out, re.DOTALL)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"card.txt", "rows.jsonl", "report.html", "run.json", "model-card.md"} <= written
    code, _, err = command("my_model.py:card", "--fail-if", "accuracy < 0.999")
    assert code == 1
    assert "FAILED" in err
    assert command("my_model.py:card", "--fail-if", "accuracy < 0.1")[0] == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.py:card", "there is no Python file"),
        ("my_model.py:nothing", "has no nothing"),
        ("my_model.py:odd", "did you mean model"),
        ("my_model.py:lost", "holds no model; it holds train"),
        ("my_model.py:ATTACKS", "is a tuple; expected a Task"),
    ],
    ids="file name word model kind".split(),
)
def test_commands_that_make_no_sense(command: Callable[..., tuple[int, str, str]], name: str, sentence: str) -> None:
    code, _, err = command(name)
    assert code == 2
    assert sentence in err


def test_a_file_that_cannot_be_run(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    code, _, err = command("bad.py")
    assert code == 2
    assert "cannot be run: ZeroDivisionError" in err


def test_a_task_on_the_command_line(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = command("my_model.py", "--minutes", "0.0001", "--json")
    assert code == 0
    assert '"task": "mine()"' in out


def test_code_in_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "assess.md").read_text()
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in blocks:
        exec(code, scope)
    said = capsys.readouterr().out
    assert len(re.findall(r"^\| accuracy +\| [01]", said, re.MULTILINE)) == len(blocks) == 5
