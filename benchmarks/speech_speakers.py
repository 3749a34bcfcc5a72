"""Spoken digits of a speaker who was never heard: the document model beside an SVM on log-spectrograms.

    python -m benchmarks.speech_speakers [SPEAKER...]

prints the accuracy on each speaker when the other five train (about 6 minutes on one core for all of them), and, asked
for all, writes ``benchmarks/results/speech-speakers.json``.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import torch
from torch import Tensor

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.batch import Splits
from secure_ml.cells import PACKAGES
from secure_ml.rows import package_version
from secure_ml.tasks._speech import SPEAKERS, LogMel
from secure_ml.training import fit


def main(*speakers: str) -> None:
    """Print the table, and keep it if it is whole."""
    torch.set_num_threads(1)
    chosen = [int(speaker) for speaker in speakers] or list(range(len(SPEAKERS)))
    rows = [row(speaker) for speaker in chosen]
    shares = {name: [float(row[name]) for row in rows] for name in ("speech_digits", "svm")}
    summary = {name: {"mean": sum(found) / len(found), "worst": min(found)} for name, found in shares.items()}
    print(json.dumps(summary, indent=1))
    if speakers:
        return
    record = {
        "command": "python -m benchmarks.speech_speakers",
        "versions": {package: package_version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "hardware": hardware(),
        "threads": 1,
        "rows": rows,
        "summary": summary,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speech-speakers.json").write_text(json.dumps(record, indent=1) + "\n")


def row(speaker: int) -> dict[str, Any]:
    """Both models' accuracy on one speaker."""
    victim = fit(sm.task("speech_digits", speaker=speaker), device="cpu")
    validation = victim.task.score.measure(victim.served, victim.splits.validation)
    found = {
        "speaker": SPEAKERS[speaker],
        "clips": len(victim.splits.test),
        "speech_digits": victim.score().value,
        "known speakers": validation.value,
        "svm": svm(victim.splits),
        "seconds": round(victim.seconds, 1),
    }
    print(found, flush=True)
    return found


def svm(splits: Splits) -> float:
    """Accuracy of a support vector machine (RBF kernel, C = 10) on what the document model hears, undistorted."""
    from sklearn.svm import SVC

    ear = LogMel()

    def heard(wave: object) -> Any:
        assert isinstance(wave, Tensor)
        return ear(wave).flatten(1).numpy()

    machine = SVC(C=10).fit(heard(splits.train.inputs), splits.train.target)
    return float(machine.score(heard(splits.test.inputs), splits.test.target))


if __name__ == "__main__":
    main(*sys.argv[1:])
