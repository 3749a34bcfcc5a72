"""A run's pooled rows for those who keep their experiments in MLflow (https://mlflow.org)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from secure_ml.errors import UsageError
from secure_ml.rows import Row

EXPERIMENT = "secure-ml"


def check_mlflow(uri: str | None) -> None:
    """Raise `UsageError` where logging was asked for and MLflow is not installed."""
    if uri is not None and find_spec("mlflow") is None:
        raise UsageError(
            "--mlflow needs mlflow, which is not installed: pip install mlflow-skinny (the extra 'mlflow')"
        )


def log(rows: Sequence[Row], options: Mapping[str, object], out: Path, uri: str | None, name: str) -> None:
    """One MLflow run for each stack of defenses: what was asked as parameters, pooled rows as metrics with bounds.

    Tables and rows go along as artifacts; nothing happens without a URI.
    """
    if uri is None:
        return
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(EXPERIMENT)
    asked = {key: str(value)[:500] for key, value in options.items()}
    for task, defenses in dict.fromkeys((row.task, row.defenses) for row in rows):
        with mlflow.start_run(run_name=f"{name}: {defenses} on {task}"):
            mlflow.log_params({**asked, "task": task, "defenses": defenses})
            for row in (r for r in rows if (r.task, r.defenses) == (task, defenses) and r.value is not None):
                for end, value in (("", row.value), (" low", row.low), (" high", row.high)):
                    if value is not None:
                        mlflow.log_metric(metric_name(row, rows) + end, value)
            for path in sorted(p for p in out.iterdir() if p.suffix in {".jsonl", ".md", ".png", ".html"}):
                mlflow.log_artifact(str(path))


def metric_name(row: Row, rows: Sequence[Row]) -> str:
    """The measure, and the attack where several measured the same; only what MLflow allows in a name."""
    rivals = {other.attack for other in rows if other.measure == row.measure}
    return re.sub(r"[^\w./ -]", "_", f"{row.measure} by {row.attack}" if len(rivals) > 1 else row.measure)
