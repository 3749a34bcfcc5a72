"""Checks of the attacks: stronger ones must find more, and all that is found must be consistent."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from attacks.evasion.apgd import APGD
from attacks.evasion.fgsm import FGSM
from attacks.evasion.pgd import PGD
from attacks.evasion.square import Square
from attacks.scrutiny._contract import gradients
from attacks.scrutiny._scene import Scene
from secure_ml.batch import Batch
from secure_ml.certificate import Certificate
from secure_ml.families.scrutiny import Finding
from secure_ml.stats import clopper_pearson
from secure_ml.task import Task
from secure_ml.threats import L2, Linf
from secure_ml.training import fit
from secure_ml.victim import Victim

ORDER = "FGSM against PGD"
CONVERGENCE = "convergence and restarts"
CURVE = "accuracy against radius"
BLACK_BOX = "black box against white box"
REHEARSED = "same attack as in training"
SECOND = "second norm"
POINTWISE = "pointwise worst case"
SANDWICH = "sandwich"
CONTROLS = "negative controls"

STEPPED = PGD(steps=20, loss="margin")
STRONG = (APGD(loss="ce", steps=50), APGD(loss="dlr", steps=50, targets=3))
STRONGER = (APGD(loss="ce", steps=100, restarts=2), APGD(loss="dlr", steps=100, targets=3))
QUERIES = 1000


def few(scene: Scene, share: float) -> int:
    """Examples that a share comes to, and no fewer than two: one proves nothing."""
    return max(2, round(share * len(scene.batch)))


def order(scene: Scene) -> Finding:
    """An iterated attack breaks what a single step breaks, and a step what noise breaks."""
    noise, step, path = _noise(scene), scene.broken(FGSM()), scene.broken(STEPPED)
    evidence = f"broken by noise {int(noise.sum())}, by FGSM {int(step.sum())}, by PGD {int(path.sum())}"
    if int(step.sum()) > int(path.sum()) + few(scene, 0.01) or int(noise.sum()) > int(path.sum()) + few(scene, 0.01):
        return Finding(ORDER, "FAIL", evidence, "gradients mislead after the first step: masking is likely")
    return Finding(ORDER, "PASS", evidence)


def _noise(scene: Scene) -> Tensor:
    """What the worst of ten random points breaks."""
    broken, rng = scene.clean_wrong(), scene.rng("noise")
    for _ in range(10):
        point = scene.threat.start(scene.surface, scene.clean, rng)
        broken = broken | scene.wrong(Batch(scene.surface.put(scene.batch.inputs, point), scene.batch.target))
    return broken


def convergence(scene: Scene) -> Finding:
    """Twice the steps and another start break no more."""
    once, twice = scene.broken(*STRONG), scene.broken(*STRONG, *STRONGER)
    more = int(twice.sum()) - int(once.sum())
    evidence = f"twice the steps and a second start break {more} more of {len(once)}"
    if more > few(scene, 0.005):
        return Finding(CONVERGENCE, "WARN", evidence, "the attack has not converged: more steps, more restarts")
    return Finding(CONVERGENCE, "PASS", evidence)


def curve(scene: Scene) -> Finding:
    """Accuracy falls with the radius, and in the whole box to no more than chance."""
    reach = scene.threat.reach(scene.surface, scene.clean)
    radii = [scene.threat.radius * factor for factor in (0.5, 1, 2, 4, 8)]
    radii = [*(radius for radius in radii if radius < reach), reach]
    heights = [scene.accuracy(scene.broken(STEPPED, threat=scene.threat.within(radius))) for radius in radii]
    evidence = ", ".join(f"{height:.1%} at {radius:.3g}" for radius, height in zip(radii, heights, strict=True))
    slack = few(scene, 0.01) / len(scene.batch)
    rises = any(later > before + slack for before, later in pairwise(heights))
    if rises or heights[-1] > scene.chance() + slack:
        return Finding(CURVE, "FAIL", evidence, "no model can withstand any change: the attack is blind")
    return Finding(CURVE, "PASS", evidence)


def black_box(scene: Scene) -> Finding:
    """An attack that only asks breaks nothing that the gradient missed."""
    white = scene.broken(*STRONG, *STRONGER)
    missed = int((scene.broken(Square(queries=QUERIES)) & ~white).sum())
    evidence = f"Square with {QUERIES} queries breaks {missed} that white-box attacks missed"
    if missed > few(scene, 0.002):
        return Finding(BLACK_BOX, "FAIL", evidence, "gradients are masked: trust attacks that only ask, or adapt")
    return Finding(BLACK_BOX, "PASS", evidence)


def rehearsed(scene: Scene) -> Finding:
    """What training rehearsed is not what is measured; if it is surely much weaker, training learned to fool it."""
    known = [attack for d in scene.victim.defenses if (attack := d.rehearses(scene.task)) is not None]
    if not known:
        return Finding(REHEARSED, "PASS", "training rehearsed no attack")
    mine, strong = scene.broken(*known), scene.broken(*STRONG)
    evidence = f"{scene.accuracy(mine):.1%} under the rehearsed attack, {scene.accuracy(strong):.1%} under Auto-PGD"
    gap = clopper_pearson(int((strong & ~mine).sum()), len(mine)).low
    if gap > 0.2:
        return Finding(REHEARSED, "FAIL", evidence, "catastrophic overfitting: rehearse with more steps")
    if gap > 0.1:
        return Finding(REHEARSED, "WARN", evidence, "quote the stronger attack only")
    return Finding(REHEARSED, "PASS", evidence)


def second_norm(scene: Scene) -> Finding:
    """Robustness in one norm says little about another."""
    size = scene.clean[0].numel() ** 0.5 / 4
    threat = scene.threat
    other = L2(size * threat.radius) if isinstance(threat, Linf) else Linf(threat.radius / size)
    here, there = scene.accuracy(scene.broken(*STRONG)), scene.accuracy(scene.broken(*STRONG, threat=other))
    evidence = f"{here:.1%} in {threat}, {there:.1%} in {type(other).__name__}({other.radius:.3g})"
    if here > scene.chance() and there < here / 2:
        return Finding(SECOND, "WARN", evidence, "robust in the norm trained for alone: claim no more than that")
    return Finding(SECOND, "PASS", evidence)


def pointwise(scene: Scene) -> Finding:
    """The union's accuracy with its interval; each example's answer hangs on nobody else's, and keeps to the threat."""
    changed, broken = scene.attacked(STRONG[0])
    backwards = torch.arange(len(broken) - 1, -1, -1, device=broken.device)
    again = torch.cat([scene.wrong(piece) for piece in changed.take(backwards).chunks(7)]).flip(0) | scene.clean_wrong()
    moved = int((again != broken).sum())
    union = scene.broken(*STRONG)
    share = clopper_pearson(int((~union).sum()), len(union))
    over = max(_excess(scene), 0.0)
    evidence = (
        f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] of {len(union)} stand, clean "
        f"{scene.accuracy(scene.clean_wrong()):.1%}; {scene.queries:,} queries, {scene.gradients:,} gradients; "
        f"{moved} answers hang on their batch; largest excess over the radius {over:.1g}"
    )
    if moved > few(scene, 0.005) or over > 1e-6 + _rounding(scene):
        return Finding(POINTWISE, "FAIL", evidence, "answers must not depend on the other examples of a batch")
    return Finding(POINTWISE, "PASS", evidence)


def _rounding(scene: Scene) -> float:
    """What adding a change to an example may round off, relative to the radius."""
    size = scene.clean.abs().max().item() + scene.threat.radius
    return torch.finfo(scene.clean.dtype).eps * size / scene.threat.radius


def _excess(scene: Scene) -> float:
    """By how much the largest change exceeds its radius, relative to it."""
    found = [
        (threat.size(scene.clean, scene.surface.get(changed.inputs)).max().item() - threat.radius) / threat.radius
        for threat, changed in scene.crafted()
    ]
    return max(found)


def sandwich(scene: Scene) -> Finding:
    """Whatever is certified stands under every attack: a proof that an attack refutes is none."""
    proofs = [proof for proof in scene.victim.certificates if isinstance(scene.threat, proof.norm)]
    union = scene.broken(*STRONG)
    if not proofs:
        return Finding(SANDWICH, "PASS", "nothing is certified in this norm")
    radii = torch.stack([proof.radii(scene.batch, scene.rng("certificate")) for proof in proofs]).amax(0)
    proved = radii >= scene.threat.radius
    refuted, alpha = _refuted(scene, proofs[0], proved & union), max(proof.alpha for proof in proofs)
    evidence = (
        f"certified {proved.double().mean().item():.1%}, standing {scene.accuracy(union):.1%}, "
        f"clean {scene.accuracy(scene.clean_wrong()):.1%}; {refuted} certified examples were broken"
    )
    if refuted > _allowed(alpha, int(proved.sum())):
        return Finding(SANDWICH, "FAIL", evidence, "the certificate is unsound: withdraw it")
    return Finding(SANDWICH, "PASS", evidence)


def _refuted(scene: Scene, proof: Certificate, suspects: Tensor) -> int:
    """Certified examples that an attack broke: by what the proof is about, where that is not what is served."""
    lost = torch.zeros_like(suspects)
    where = suspects.nonzero()[:, 0]
    for attack in STRONG if len(where) else ():
        changed = scene.attacked(attack)[0].take(where)
        named = proof.predict(changed.inputs, scene.rng("proof", attack))
        if named is None:
            return int(suspects.sum())
        assert isinstance(changed.target, Tensor)
        lost[where] |= (named >= 0) & (named != changed.target)
    return int(lost.sum())


def _allowed(alpha: float, n: int) -> int:
    """Wrong statements that chance explains: the 99.9 % quantile of Binomial(n, alpha), and none of a proof."""
    from scipy.stats import binom

    return int(binom.ppf(0.999, n, alpha)) if alpha and n else 0


def controls(scene: Scene) -> Finding:
    """The same attack breaks an undefended twin, and the check of gradients sees them masked."""
    twin = _undefended(scene.victim)
    there = Scene(twin, scene.threat, len(scene.batch), scene.seed)
    left = there.accuracy(there.broken(*STRONG))
    masked = replace(scene.victim, module=_Masked(scene.victim.module))
    blind = gradients(Scene(masked, scene.threat, min(50, len(scene.batch)), scene.seed)).verdict
    evidence = f"an undefended twin keeps {left:.1%}; gradients masked on purpose are a {blind}"
    if blind != "FAIL":
        return Finding(CONTROLS, "FAIL", evidence, "the check of gradients does not see this module's")
    if left > there.accuracy(there.clean_wrong()) / 2:
        return Finding(CONTROLS, "WARN", evidence, "the radius is too small to tell a defense from none")
    return Finding(CONTROLS, "PASS", evidence)


def _undefended(victim: Victim) -> Victim:
    """A model of the same task and data, trained for three epochs at most, without any defense."""
    task: Task = victim.task
    short = replace(task.recipe, epochs=min(task.recipe.epochs, 3), patience=None)
    splits = victim.splits
    return fit(replace(task, recipe=short, data=lambda _: splits), seed=victim.seed, device=victim.device)


class _Masked(torch.nn.Module):
    """The module on inputs cut to 256 levels, which leaves no gradient."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """The module's answers to ``(B, *shape)`` inputs."""
        levels = ((inputs * 255).round() / 255).detach()
        out: Tensor = self.module(levels + (inputs - inputs))
        return out
