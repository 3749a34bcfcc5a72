"""``secure-ml sample``: what every model that makes something shows, from the folder where ``fit`` kept it."""

import io
import wave
from pathlib import Path

import pytest

import secure_ml as sm
from experiments._main import main
from secure_ml.discovery import task_builders
from tests.laws import tiny_task, tiny_victim

MAKERS = [name for name in task_builders() if tiny_task(name).sample is not None]


def sample(name: str, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    argv = ["sample", f"{name}(tiny=True)", *words, "--model", str(folder / name), "--out", str(folder / "files")]
    assert main([*argv, "--device", "cpu"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", MAKERS)
def test_sample(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_victim(name).save(tmp_path / name)
    first = sample(name, tmp_path, capsys)
    assert first.strip(), "nothing was shown"
    assert sample(name, tmp_path, capsys) == first, "the same seed shows something else"
    for path in tmp_path.glob("files/*.wav"):
        with wave.open(io.BytesIO(path.read_bytes())) as sound:
            assert sound.getnframes() > 0


def test_a_model_that_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "digits_cnn(tiny=True)", "--model", str(tmp_path)]) == 2
    assert "digits_cnn makes nothing to show" in capsys.readouterr().err


def test_a_model_that_was_not_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", f"{MAKERS[0]}(tiny=True)", "--model", str(tmp_path / "none")]) == 2
    assert "holds no saved model" in capsys.readouterr().err


def test_there_are_makers() -> None:
    assert len(MAKERS) >= 5
    assert isinstance(tiny_task(MAKERS[0]), sm.Task)
