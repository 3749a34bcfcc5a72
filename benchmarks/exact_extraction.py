"""How exactly linear models, ReLU networks and output layers are read off their answers, and what rounding leaves.

    python -m benchmarks.exact_extraction

trains small victims on data that scikit-learn holds, steals each, and compares weights and answers: error, queries,
seconds, and the bar. ART's FunctionallyEquivalentExtraction stands beside, on the same networks. Rows go to
``benchmarks/results/exact_extraction.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import secure_ml as sm
from attacks import EquationSolving, HeadExtraction, ReluExtraction
from benchmarks.record import RESULTS, hardware
from defenses import Rounding
from secure_ml.access import BlackBox
from secure_ml.alignment import worst_weight
from secure_ml.batch import Splits
from secure_ml.families.extraction import Extraction
from secure_ml.imitation import Imitation
from secure_ml.projection import Projection
from secure_ml.randomness import generator, seeded
from secure_ml.rows import package_version

PATIENCE = 300.0
"""Seconds after which another library's attempt is stopped."""
Line = dict[str, Any]


def doubled(task: sm.Task) -> sm.Task:
    """The task with inputs, weights and answers of 64 bits."""

    def data(rng: torch.Generator) -> Splits:
        parts = task.data(rng).parts()
        return Splits(*(part.map(lambda t: t.double() if t.is_floating_point() else t) for part in parts.values()))

    return replace(task, name=f"{task.name}_float64", build=lambda: task.build().double(), data=data)


def digits(hidden: int = 0) -> sm.Task:
    """Handwritten digits by softmax regression, or by one hidden layer of ReLU units."""
    layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)] if hidden else [nn.Linear(64, 10)]
    sizes = [(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else None for layer in layers]

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), *(nn.ReLU() if size is None else nn.Linear(*size) for size in sizes))

    name = f"digits_relu_{hidden}" if hidden else "digits_softmax"
    return replace(sm.task("digits_mlp"), name=name, build=build, recipe=sm.Recipe(epochs=30))


def stolen(attack: Extraction, victim: sm.Victim, seed: int = 0) -> tuple[Any, int, float]:
    """The last copy, the queries and the seconds that it took."""
    access = BlackBox(victim.task, victim.served, attack.reveal, attack.queries)
    start = time.perf_counter()
    *_, copy = attack.steal(access, victim.splits.aux, Imitation(victim, seed), generator(seed, "exact"))
    return copy, access.queries, time.perf_counter() - start


def worst_answer(copy: Callable[[Tensor], Tensor], victim: sm.Victim, shift: bool) -> float:
    """The largest difference of answers to the test inputs, up to what all classes share if they are probabilities."""
    inputs = victim.splits.test.inputs
    assert isinstance(inputs, Tensor)
    with torch.no_grad():
        apart = copy(inputs).double() - victim.module(inputs).double()
    return float((apart - apart.mean(-1, keepdim=True) if shift and apart.ndim == 2 else apart).abs().max())


def line(what: str, attack: Extraction, victim: sm.Victim, bar: float | None = None, **more: Any) -> Line:
    """Everything about one theft of a predictor; the bar is on the answers."""
    copy, queries, seconds = stolen(attack, victim, victim.seed)
    shift = attack.reveal != "logits"
    error = worst_answer(copy, victim, shift)
    return {
        "what": what,
        "task": repr(victim.task),
        "seed": victim.seed,
        "attack": repr(attack),
        "worst answer": error,
        "worst weight": worst_weight(copy, victim.module, shift),
        "fidelity": victim.task.output.fidelity(
            copy(victim.splits.test.inputs).detach(), victim.module(victim.splits.test.inputs).detach()
        ).value,
        "queries": queries,
        "seconds": round(seconds, 2),
        "bar": bar,
        "passed": None if bar is None else error <= bar,
        **more,
    }


def linear_models() -> list[Line]:
    """Linear, logistic and softmax regression, in both precisions."""
    rows = []
    for name in ("linear_regression", "logistic_regression", "softmax"):
        task = digits() if name == "softmax" else sm.task(name)
        for served, bar in ((doubled(task), 1e-11), (task, 1e-3)):
            victim = sm.fit(served, seed=0, device="cpu")
            rows.append(line(name, EquationSolving(reveal="probabilities"), victim, bar))
    return rows


def networks(seeds: int) -> list[Line]:
    """A 64-32-10 ReLU network; 64 bits, from logits and from log-probabilities, then 32 bits."""
    rows = []
    for seed in range(seeds):
        victim = sm.fit(doubled(digits(32)), seed=seed, device="cpu")
        rows.append(line("ReLU 64-32-10, float64", ReluExtraction(), victim, 1e-6))
        rows.append(line("ReLU 64-32-10, float64", ReluExtraction(reveal="probabilities"), victim, 1e-6))
        rows.append(line("ReLU 64-32-10, float32", ReluExtraction(), sm.fit(digits(32), seed=seed, device="cpu")))
    return rows


def heads() -> list[Line]:
    """The hidden width of language models whose vocabulary is larger, from logits, log-probabilities, and the top 5."""
    rows = []
    for name in ("gpt2", "gpt2_pretrained", "char_rnn"):
        victim = sm.fit(sm.task(name, tiny=True), seed=0, device="cpu")
        kinds = HeadExtraction(), HeadExtraction(reveal="probabilities")
        for attack in (*kinds, HeadExtraction(reveal="probabilities", top=5, queries=10_000)):
            found, queries, seconds = stolen(attack, victim)
            assert isinstance(found, Projection)
            width, exact, missed = (estimate.value for _, estimate, _ in found.judge(victim, attack.reveal))
            row = {"what": "head", "task": repr(victim.task), "attack": repr(attack), "width": width, "bar": "exact"}
            rows.append(row | {"missed": missed, "queries": queries, "seconds": seconds, "passed": exact == 1.0})
    return rows


def rounded() -> list[Line]:
    """The error of softmax regression and of the ReLU network against the decimals that are served."""
    rows = []
    for decimals in (2, 3, 4, 6, 8, 10, 12):
        victim = sm.fit(doubled(digits()), [Rounding(decimals=decimals)], seed=0, device="cpu")
        kinds = EquationSolving(), EquationSolving(rounds=20), EquationSolving(rounds=20, reach=0.2)
        rows += [line("softmax, rounded", attack, victim, decimals=decimals) for attack in kinds]
        victim = sm.fit(doubled(digits(32)), [Rounding(decimals=decimals)], seed=0, device="cpu")
        rows.append(line("ReLU 64-32-10, rounded", ReluExtraction(reveal="probabilities"), victim, decimals=decimals))
    return rows


def beside(hidden: int) -> list[Line]:
    """Ours and ART's on one network of 64 bits, judged on the same test inputs."""
    victim = sm.fit(doubled(digits(hidden)), seed=0, device="cpu")
    ours = line(f"ReLU 64-{hidden}-10, beside ART", ReluExtraction(), victim)
    return [ours, _art(hidden, victim, ours)]


def _art(hidden: int, victim: sm.Victim, ours: Line) -> Line:
    import numpy as np
    from art.attacks.extraction import FunctionallyEquivalentExtraction
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    count, start = 0, time.perf_counter()

    class Served(BlackBoxClassifierNeuralNetwork):  # type: ignore[misc]
        """Answers of 64 bits: ART's own class rounds questions to 32."""

        def predict(self, x: Any, *_: Any, **__: Any) -> Any:
            nonlocal count
            count += len(x)
            if time.perf_counter() - start > PATIENCE:
                raise TimeoutError(f"stopped after {PATIENCE:.0f} seconds")
            return victim.served(torch.from_numpy(np.asarray(x)).reshape(-1, *shape)).numpy()

    shape = victim.splits.aux.inputs.shape[1:]  # type: ignore[union-attr]
    row: Line = {"what": ours["what"], "task": ours["task"], "attack": "ART FunctionallyEquivalentExtraction"}
    with seeded(0, "art"), np.errstate(all="ignore"):
        state = np.random.get_state()
        np.random.seed(0)
        try:
            served = Served(lambda x: x, input_shape=(64,), nb_classes=10)
            attack = FunctionallyEquivalentExtraction(served, num_neurons=hidden)
            aux = victim.splits.aux.inputs.reshape(-1, 64).numpy()  # type: ignore[union-attr]
            copy = attack.extract(aux)
            ask = copy._predict_fn
            error = worst_answer(lambda x: torch.from_numpy(ask(x.reshape(-1, 64).numpy())), victim, False)
            row["worst answer"], row["outcome"] = error, "a copy"
        except (AssertionError, TimeoutError, ValueError) as failure:
            row["worst answer"], row["outcome"] = None, str(failure)
        finally:
            np.random.set_state(state)
    better = row["worst answer"] is None or ours["worst answer"] <= row["worst answer"]
    return row | {"queries": count, "seconds": round(time.perf_counter() - start, 1), "passed": better}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print, record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_extraction")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[Line] = []
    for part in (linear_models, lambda: networks(options.seeds), heads, rounded, lambda: beside(4), lambda: beside(32)):
        made = part()
        print("\n".join(map(json.dumps, made)), flush=True)
        rows += made
    record = {
        "command": "python -m benchmarks.exact_extraction",
        "versions": {name: package_version(name) for name in ("secure-ml", "torch", "adversarial-robustness-toolbox")}
        | {"python": platform.python_version()},
        "hardware": {**hardware(), "threads": 1},
        "rows": rows,
    }
    (RESULTS / "exact_extraction.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(row["passed"] for row in rows if row.get("passed") is not None))


if __name__ == "__main__":
    sys.exit(main())
