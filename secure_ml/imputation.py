"""Guessing an attribute from what else is known, without any model under attack."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Tree

FOLDS = 3


def features_with(rows: Tensor, target: Tree | None) -> Tensor:
    """Rows ``(B, d)`` and their targets, where known: a class as a one-hot code, values as they are, ``(B, d + k)``."""
    if not isinstance(target, Tensor):
        return rows
    kinds = int(target.max()) + 1 if target.numel() and not target.is_floating_point() else 0
    if kinds:
        return torch.cat([rows, torch.nn.functional.one_hot(target, kinds).to(rows)], 1)
    return torch.cat([rows, target.reshape(len(rows), -1).to(rows)], 1)


def impute(known: Tensor, kinds: Tensor, count: int, asked: Tensor) -> Tensor:
    """Chances ``(B, count)`` of each kind for the features ``asked`` ``(B, d)``, learned from examples ``(n, d)``.

    By logistic regression or a random forest, whichever guesses better in three folds of the examples, so that the
    guess without access is a good one. Where the examples show one kind only, that kind is sure.
    """
    x, y, z = (tensor.detach().cpu().numpy() for tensor in (known, kinds, asked))
    there = np.unique(y)
    chances = np.zeros((len(z), count))
    if len(there) == 1:
        chances[:, there[0]] = 1.0
    elif len(z):
        chances[:, there] = _best(x.astype(np.float64), y).predict_proba(z.astype(np.float64))
    return torch.as_tensor(chances, dtype=torch.float32, device=asked.device)


def _best(x: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rivals = [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)),
        RandomForestClassifier(n_estimators=50, min_samples_leaf=2, random_state=0),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, and of kinds with few examples
        if np.unique(y, return_counts=True)[1].min() >= FOLDS:
            scores = [cross_val_score(rival, x, y, cv=FOLDS).mean() for rival in rivals]
            rivals = [rivals[int(np.argmax(scores))]]
        return rivals[0].fit(x, y)
