"""Pipelines of scikit-learn, whatever else keeps to its methods, and functions that answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from secure_ml.batch import Tree, tree_map
from secure_ml.errors import UsageError, require
from secure_ml.outside.columns import Columns
from secure_ml.outside.opaque import Opaque


@runtime_checkable
class Predicts(Protocol):
    """What every estimator can do; classifiers have ``predict_proba`` or ``decision_function`` as well."""

    def predict(self, inputs: Any) -> Any:
        """Labels or values ``(B,)`` of rows ``(B, d)``."""


class Estimator(Opaque):
    """A fitted estimator: rows ``(B, d)`` to probabilities ``(B, K)``, to labels alone, or to values ``(B,)``."""

    def __init__(self, model: Predicts) -> None:
        super().__init__()
        self.model = model
        self.what = f"a scikit-learn {type(model).__name__}"
        kinds = getattr(model, "classes_", None)
        self.kinds = None if kinds is None else np.asarray(kinds)
        """The labels in the order of the probabilities; None where values are predicted."""
        self.proba = getattr(model, "predict_proba", None)
        self.names = getattr(model, "feature_names_in_", None)
        self.columns: Columns | None = None
        """What rows of numbers stand for, where frames have words or gaps in them."""
        require(
            self.kinds is None or self.kinds.ndim == 1,
            f"{self.what} has several outputs; give one that predicts a single class",
        )

    def answer(self, inputs: Tree) -> Tensor:
        """Probabilities; without ``predict_proba`` a 1 for the label that is predicted; or values.

        `UsageError` where the estimator raises, as encoders do about words that they never saw.
        """
        if not isinstance(inputs, Tensor):
            raise UsageError(f"{self.what} takes rows (B, d); given {type(inputs).__name__}")
        rows: Any = inputs.numpy()
        if self.columns is not None:
            rows = self.columns.decode(inputs)
        elif self.names is not None:
            import pandas as pd  # which is there, or the pipeline would not have been fitted on names

            rows = pd.DataFrame(rows, columns=self.names)
        try:
            said = np.asarray(self.model.predict(rows) if self.proba is None else self.proba(rows))
        except Exception as error:  # whatever an estimator of somebody else's raises
            first = (str(error).splitlines() or [""])[0][:200]
            raise UsageError(f"{self.what} cannot be asked: {type(error).__name__}: {first}") from error
        if self.proba is not None or self.kinds is None:
            return torch.as_tensor(said, dtype=torch.float32)
        return torch.as_tensor(said[:, None] == self.kinds, dtype=torch.float32)

    def classes(self, labels: np.ndarray) -> Tensor:
        """The places ``(n,)`` of labels among its classes; `UsageError` for one that it does not know."""
        assert self.kinds is not None
        strange = set(np.unique(labels).tolist()) - set(self.kinds.tolist())
        require(not strange, f"{self.what} was not trained on the labels {sorted(map(str, strange))[:3]}")
        places = {kind: place for place, kind in enumerate(self.kinds.tolist())}
        return torch.tensor([places[label] for label in labels.tolist()], dtype=torch.long)


class Function(Opaque):
    """A function of arrays, ``(B, *shape)`` to a row of probabilities or logits, or a value, for each of B inputs."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        super().__init__()
        self.ask = ask
        self.what = f"the function {getattr(ask, '__name__', type(ask).__name__)}"

    def answer(self, inputs: Tree) -> Tensor:
        """What it returns, an array or a tensor; `UsageError` for anything else."""
        arrays: Any = tree_map(lambda leaf: leaf.numpy(), inputs)  # type: ignore[arg-type, return-value]
        said = self.ask(arrays)
        if not isinstance(said, (Tensor, np.ndarray, list)):
            raise UsageError(f"{self.what} returns a {type(said).__name__}; expected an array, a row for each input")
        return torch.as_tensor(said, dtype=torch.float32).detach().cpu()


def asked(model: Callable[..., Any]) -> Opaque:
    """The estimator behind its own ``predict_proba``; any other function as it is."""
    owner = getattr(model, "__self__", None)
    if isinstance(owner, Predicts) and getattr(model, "__name__", "") == "predict_proba":
        return Estimator(owner)
    return Function(model)
