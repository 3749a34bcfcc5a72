"""adult_mlp beside scikit-learn's logistic regression and boosted trees, on the same splits.

    SECURE_ML_DATA=... python -m benchmarks.adult_baselines

writes ``benchmarks/results/adult-baselines.json``: the AUC and accuracy of each on the official test split.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from statistics import mean

import numpy as np
from torch import Tensor

import secure_ml as sm
from benchmarks.record import RESULTS, hardware
from secure_ml.batch import Batch, Splits
from secure_ml.rows import package_version

SEEDS = (0, 1, 2)
Fit = Callable[[Splits, int], Callable[[Batch], np.ndarray]]


def main() -> None:
    """Train and score all three, and write the record."""
    from sklearn.metrics import accuracy_score, roc_auc_score

    task = sm.task("adult_mlp")
    rows: list[dict[str, object]] = []
    for name, fit in (("LogisticRegression", logistic), ("HistGradientBoosting", trees), ("adult_mlp", perceptron)):
        found: dict[str, list[float]] = {"AUC": [], "accuracy": [], "training seconds": []}
        for seed in SEEDS:
            splits = task.draw(seed)
            start = time.perf_counter()
            decide = fit(splits, seed)
            found["training seconds"].append(time.perf_counter() - start)
            logits, (_, target) = decide(splits.test), arrays(splits.test)
            found["AUC"].append(float(roc_auc_score(target, logits)))
            found["accuracy"].append(float(accuracy_score(target, logits > 0)))
        rows += [{"model": name, "measure": key, "mean": mean(seen), "seeds": seen} for key, seen in found.items()]
        print(name, {key: round(mean(seen), 4) for key, seen in found.items()})
    packages = ("secure-ml", "torch", "numpy", "scikit-learn")
    record = {
        "command": "python -m benchmarks.adult_baselines",
        "versions": {p: package_version(p) for p in packages} | {"python": platform.python_version()},
        "hardware": hardware(),
        "seeds": SEEDS,
        "rows": rows,
    }
    (RESULTS / "adult-baselines.json").write_text(json.dumps(record, indent=1) + "\n")


def arrays(part: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(n, d)`` and classes ``(n,)``."""
    assert isinstance(part.inputs, Tensor)
    assert isinstance(part.target, Tensor)
    return part.inputs.numpy(), part.target.numpy()


def logistic(splits: Splits, seed: int) -> Callable[[Batch], np.ndarray]:
    """Logistic regression with scikit-learn's settings."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(*arrays(splits.train))
    return lambda part: np.asarray(model.decision_function(arrays(part)[0]))


def trees(splits: Splits, seed: int) -> Callable[[Batch], np.ndarray]:
    """Boosted trees with scikit-learn's settings."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(random_state=seed).fit(*arrays(splits.train))
    return lambda part: np.asarray(model.decision_function(arrays(part)[0]))


def perceptron(splits: Splits, seed: int) -> Callable[[Batch], np.ndarray]:
    """This project's model; it draws the same splits by itself."""
    victim = sm.fit(sm.task("adult_mlp"), seed=seed, device="cpu")
    assert victim.splits.fingerprint() == splits.fingerprint()
    return lambda part: victim.served(part.inputs).numpy()


if __name__ == "__main__":
    main()
