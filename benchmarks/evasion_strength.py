"""What our ensemble leaves right and what the strongest peers leave right, example by example.

    pip install -e '.[test,bench]'
    python -m benchmarks.evasion_strength RUN [--attacks ours torchattacks-100] [--nets linf] [--model linf=FOLDER]

attacks each net on the same points with each library and keeps every answer in the folder RUN as it comes (a killed
call goes on); when all are there, the record ``benchmarks/results/evasion_strength.json`` is written. ``--model``
names a folder made by ``secure-ml fit`` or ``Victim.save`` to be attacked in place of the net that is trained here.

The bars: our robust accuracy is at most 0.3 points above that of the best peer, and of what any peer breaks we
miss at most 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attacks
import secure_ml as sm
from benchmarks import _peers as peers
from benchmarks.record import RESULTS
from secure_ml.stats import clopper_pearson

OURS = "ours"
THEIRS: dict[str, peers.Attacker] = {
    "torchattacks": peers.torchattacks_autoattack(10),
    "torchattacks-100": peers.torchattacks_autoattack(100),
    "art-apgd": peers.art_ensemble,
    "foolbox-pgd-10": peers.foolbox_pgd(restarts=10),
}
SHOWN = {
    OURS: "secure-ml AutoAttack",
    "torchattacks": "torchattacks AutoAttack, as shipped: 10 iterations",
    "torchattacks-100": "torchattacks AutoAttack with the standard's 100 iterations",
    "art-apgd": "ART AutoAttack of APGD-CE and APGD-DLR, 5 starts each",
    "foolbox-pgd-10": "Foolbox PGD, 10 restarts",
}
ACCURACY, MISSED = 0.003, 0.005


def main() -> int:
    """Run what is not there yet, compare, and write the record when all is there; 1 if a bar is missed."""
    options = _options()
    torch.set_num_threads(options.threads)
    models = dict(text.split("=", 1) for text in options.model)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for net in options.nets:
        victim = peers.victim(net, options.run, Path(models[net]) if net in models else None)
        for attack in options.attacks:
            done = kept(options.run / net / f"{attack}.json", victim, net, attack, options)
            found.setdefault(net, {})[attack] = done
            print(
                f"{net:12} {attack:18} {done['right'].count('1')} of {done['n']} right, {done['seconds']:.0f} s",
                flush=True,
            )
    rows = [row for net, by_attack in found.items() for row in _compared(net, by_attack)]
    for row in rows:
        print(row)
    if set(options.nets) == set(peers.NETS) and set(options.attacks) == set(SHOWN):
        record = {"command": "python -m benchmarks.evasion_strength RUN", **peers.surroundings(), "rows": rows}
        (RESULTS / "evasion_strength.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(row["passed"] is False for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evasion_strength")
    parser.add_argument("run", type=Path, help="folder that keeps the nets and every answer")
    parser.add_argument("--attacks", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--nets", nargs="+", choices=peers.NETS, default=list(peers.NETS))
    parser.add_argument("--model", action="append", default=[], metavar="NET=FOLDER", help="a saved model to attack")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1000, help="examples that a peer is given at a time")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def kept(path: Path, victim: sm.Victim, net: str, attack: str, options: argparse.Namespace) -> dict[str, Any]:
    """What an attack left right, from its file if that is of this model and these points, else run now."""
    about = {"weights": peers.fingerprint(victim.module), "n": options.examples, "batch": options.batch}
    about |= {"code": peers.code(attacks.AutoAttack())} if attack == OURS else {}
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if all(found.get(name) == value for name, value in about.items()):
            return found
    right, seconds, extra = _run(victim, net, attack, options)
    found = {**about, "right": "".join("01"[int(value)] for value in right), "seconds": round(seconds, 2), **extra}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **peers.surroundings()}) + "\n")
    return found


def _run(victim: sm.Victim, net: str, attack: str, options: argparse.Namespace) -> tuple[Tensor, float, dict[str, Any]]:
    threat = peers.NETS[net].threat
    clopper_pearson(0, 1)  # its libraries are imported before the clock runs, as the peers' are
    if attack != OURS:
        done = peers.judged(THEIRS[attack], victim, threat, options.examples, options.batch)
        return done.right, done.seconds, {"outside": done.outside}
    start = time.process_time()
    result = attacks.AutoAttack().evaluate(victim, threat=threat, seed=0, examples=options.examples)
    seconds = time.process_time() - start
    (row,) = result.rows
    return result.evidence["worst"] > 0, seconds, {"queries": row.queries, "gradients": row.gradients}


def _compared(net: str, by_attack: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row an attack: what it leaves right and, for a peer, what it breaks that we do not."""
    masks = {name: torch.tensor([c == "1" for c in kept["right"]]) for name, kept in by_attack.items()}
    rows = []
    for name, right in masks.items():
        estimate = clopper_pearson(int(right.sum()), len(right))
        rows.append(
            {
                "net": f"{net}, {peers.NETS[net].threat}",
                "attack": SHOWN[name],
                "robust accuracy": estimate.value,
                "low": round(estimate.low, 4),
                "high": round(estimate.high, 4),
                "n": len(right),
                "broken by it alone": _alone(masks, OURS, name),
                "broken by ours alone": _alone(masks, name, OURS),
                "seconds": by_attack[name]["seconds"],
                "passed": None,
            }
        )
        if name == OURS and len(masks) > 1:
            rows[-1]["passed"] = _passed(masks)
    return rows


def _alone(masks: dict[str, Tensor], one: str, other: str) -> int | None:
    """How many examples ``one`` leaves right and ``other`` breaks."""
    return int((masks[one] & ~masks[other]).sum()) if one in masks and one != other else None


def _passed(masks: dict[str, Tensor]) -> bool:
    """Whether ours is at most 0.3 points above every peer and misses at most 0.5 % of what each of them breaks."""
    ours = masks[OURS]
    return all(
        ours.float().mean() - theirs.float().mean() <= ACCURACY + 1e-9
        and int((ours & ~theirs).sum()) <= MISSED * int((~theirs).sum())
        for name, theirs in masks.items()
        if name != OURS
    )


if __name__ == "__main__":
    raise SystemExit(main())
