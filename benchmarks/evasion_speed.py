"""Seconds that our attacks and the peers' take on the same points, threads and batch size, and what each leaves right.

    pip install -e '.[test,bench]'
    python -m benchmarks.evasion_speed RUN [--groups pgd apgd ensemble] [--nets undefended linf] [--repeats 5]

runs the attacks of a group in turn, several times over, in one process with one thread, and keeps the median of the
processor's seconds. The ensembles are those of ``benchmarks.evasion_strength``, found in RUN or run now. Everybody
attacks the whole batch at once and is handed a net whose weights ask for no gradient. Each answer is kept in the
folder RUN; when all are there, ``benchmarks/results/evasion_speed.json`` is written.

The bars: PGD-40 as fast as torchattacks and 3 times ART; APGD-100 1.5 times torchattacks and 10 times ART; the
ensemble 5 times torchattacks' on the undefended net and 1.5 times on a robust one. torchattacks ships its ensemble
with 10 iterations where the standard has 100; the bar is judged against it at 100, and both are shown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import attacks
import secure_ml as sm
from benchmarks import _peers as peers
from benchmarks import evasion_strength
from benchmarks.record import RESULTS
from secure_ml.families.evasion import Evasion

OURS = "secure-ml"


@dataclass(frozen=True)
class Group:
    """One of our attacks, the peers' like it, and how many times faster than each of them it has to be."""

    ours: Callable[[], Evasion]
    theirs: dict[str, Any]
    """By library: what to run, or its name in `benchmarks.evasion_strength`, which keeps its seconds."""
    bars: dict[str, dict[str, float]]
    """Of a peer, by net; ``""`` for every other net."""
    repeats: int


GROUPS = {
    "pgd": Group(
        lambda: attacks.PGD(steps=40),
        {
            "torchattacks": peers.torchattacks_pgd(40),
            "ART": peers.art_pgd(40),
            "Foolbox": peers.foolbox_pgd(40),
        },
        {"torchattacks": {"": 1.0}, "ART": {"": 3.0}},
        5,
    ),
    "apgd": Group(
        lambda: attacks.APGD(steps=100),
        {"torchattacks": peers.torchattacks_apgd(100), "ART": peers.art_apgd_ce},
        {"torchattacks": {"": 1.5}, "ART": {"": 10.0}},
        3,
    ),
    "ensemble": Group(
        lambda: attacks.AutoAttack(),
        {"torchattacks, as shipped": "torchattacks", "torchattacks, 100 iterations": "torchattacks-100"},
        {"torchattacks, 100 iterations": {"undefended": 5.0, "": 1.5}},
        1,
    ),
}


def main() -> int:
    """Measure, compare and record; 1 if a bar is missed."""
    options = _options()
    torch.set_num_threads(options.threads)
    models = dict(text.split("=", 1) for text in options.model)
    rows: list[dict[str, Any]] = []
    for net in options.nets:
        victim = peers.victim(net, options.run, Path(models[net]) if net in models else None)
        for name in options.groups:
            rows += _compared(name, net, _kept(name, net, victim, options))
            print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        print(row)
    if set(options.groups) == set(GROUPS) and {"undefended", "linf"} <= set(options.nets):
        record = {"command": "python -m benchmarks.evasion_speed RUN", **peers.surroundings(), "rows": rows}
        (RESULTS / "evasion_speed.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(row["passed"] is False for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evasion_speed")
    parser.add_argument("run", type=Path, help="folder that keeps the nets and every answer")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--nets", nargs="+", choices=peers.NETS, default=["undefended", "linf"])
    parser.add_argument("--model", action="append", default=[], metavar="NET=FOLDER", help="a saved model to attack")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, help="rounds of each group; 5, 3 and 1 unless given")
    parser.add_argument("--batch", type=int, default=1000, help="of the ensembles")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _kept(name: str, net: str, victim: sm.Victim, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and right answers of everybody in a group, from the file if it is of this model, else measured now."""
    path = options.run / net / f"speed-{name}.json"
    group = GROUPS[name]
    about = {
        "weights": peers.fingerprint(victim.module),
        "code": peers.code(group.ours()),
        "examples": options.examples,
        "repeats": options.repeats or group.repeats,
    }
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if all(kept.get(key) == value for key, value in about.items()):
            return kept
    measure = _from_strength if name == "ensemble" else _measured
    kept = {**about, **measure(group, net, victim, options, about["repeats"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept) + "\n")
    return kept


def _measured(group: Group, net: str, victim: sm.Victim, options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    threat, batch = peers.NETS[net].threat, victim.tested(options.examples)
    x, y = batch.inputs, batch.target
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    frozen, attack = peers.frozen(victim.module), group.ours()
    runs: dict[str, Callable[[], Tensor]] = {OURS: partial(_ours, attack, victim, threat, options.examples)}
    runs |= {name: partial(run, frozen, x, y, threat, options.examples) for name, run in group.theirs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    right = {}
    for attacker in group.theirs.values():  # what is imported on first use is no part of an attack
        attacker(frozen, x[:2], y[:2], threat, 2)
    _ours(attack, victim, threat, 2)
    for _ in range(repeats):
        for name, run in runs.items():
            peers.seeds()
            start = time.process_time()
            changed = run()
            seconds[name].append(round(time.process_time() - start, 4))
            inside = threat.project(victim.task.surface(threat), x, changed.to(x.dtype))
            right[name] = int((peers.correct(frozen, x, y) & peers.correct(frozen, inside, y)).sum())
    return {"ours": repr(attack), "seconds": seconds, "right": right}


def _from_strength(
    group: Group, net: str, victim: sm.Victim, options: argparse.Namespace, repeats: int
) -> dict[str, Any]:
    """The seconds of the runs that are compared for their strength, which are long: once is enough."""
    names = {OURS: evasion_strength.OURS, **group.theirs}
    found = {
        library: evasion_strength.kept(options.run / net / f"{name}.json", victim, net, name, options)
        for library, name in names.items()
    }
    seconds = {library: [kept["seconds"]] for library, kept in found.items()}
    right = {library: kept["right"].count("1") for library, kept in found.items()}
    return {"ours": repr(group.ours()), "seconds": seconds, "right": right}


def _ours(attack: Evasion, victim: sm.Victim, threat: sm.Threat, examples: int) -> Tensor:
    changed = attack.craft(victim, threat=threat, seed=0, examples=examples)[1].inputs
    assert isinstance(changed, Tensor)
    return changed


def _compared(name: str, net: str, kept: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each library: seconds, what it leaves right, and how much longer it takes than ours."""
    bars, ours = GROUPS[name].bars, median(kept["seconds"][OURS])
    rows = []
    for library, times in kept["seconds"].items():
        wanted = bars.get(library, {}).get(net, bars.get(library, {}).get(""))
        ratio = median(times) / ours
        rows.append(
            {
                "net": f"{net}, {peers.NETS[net].threat}",
                "attack": kept["ours"],
                "library": library,
                "seconds": round(median(times), 3),
                "fastest": min(times),
                "times ours": round(ratio, 2),
                "bar": wanted,
                "left right": kept["right"][library],
                "of": kept["examples"],
                "passed": None if wanted is None else ratio >= wanted,
            }
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
