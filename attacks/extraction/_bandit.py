"""A gradient bandit (Sutton and Barto 2018, section 2.8), and what it is rewarded for."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.extraction._learned import shares, uncertainty
from secure_ml.batch import Batch
from secure_ml.outputs import Output, Values

STEP = 0.5
"""How far one reward, in deviations, moves the preference for an arm."""


class Bandit:
    """Preferences for arms, which rewards above the mean raise; on the CPU."""

    def __init__(self, arms: int) -> None:
        self.preference = torch.zeros(arms, dtype=torch.double)
        self.count, self.mean, self.spread = 0, torch.zeros(0), torch.zeros(0)

    @property
    def policy(self) -> Tensor:
        """The probability of each arm."""
        return self.preference.softmax(0)

    def draw(self, arm: Tensor, left: Tensor, n: int, rng: torch.Generator) -> Tensor:
        """Places ``(n,)`` that are left, each of an arm ``(N,)`` drawn by the policy; an empty arm is not drawn."""
        waiting = [list(places) for places in self._shuffled(arm, left, rng)]
        chosen = []
        for _ in range(n):
            full = torch.tensor([bool(places) for places in waiting])
            odds = self.policy * full if bool((self.policy * full).sum() > 0) else full.double()
            chosen.append(waiting[int(torch.multinomial(odds, 1, generator=rng))].pop())
        return torch.tensor(chosen, dtype=torch.long)

    def learn(self, arms: Tensor, rewards: Tensor) -> None:
        """Update the preferences by the rewards ``(n, parts)`` of arms ``(n,)`` in turn, each part on its own scale."""
        for arm, parts in zip(arms.tolist(), rewards.double().cpu(), strict=True):
            self.count += 1
            if self.count == 1:
                self.mean, self.spread = parts.clone(), torch.zeros_like(parts)
            before = self.mean
            self.mean = before + (parts - before) / self.count
            self.spread = self.spread + (parts - before) * (parts - self.mean)
            deviation = (self.spread / self.count).sqrt()
            surplus = float(((parts - self.mean) / deviation.clamp_min(1e-9)).mean())
            own = torch.zeros_like(self.preference)
            own[arm] = 1.0
            self.preference = self.preference + STEP * surplus * (own - self.policy)

    def _shuffled(self, arm: Tensor, left: Tensor, rng: torch.Generator) -> list[list[int]]:
        order = torch.randperm(len(arm), generator=rng)
        order = order[left[order]]
        return [order[arm[order] == k].tolist() for k in range(len(self.preference))]


def rewards(output: Output, new: Batch, before: Tensor, copied: Tensor) -> Tensor:
    """What each new answer is worth, ``(n, parts)``: sure, unlike the answers before, unlike the copy's own."""
    answers = new.target
    assert isinstance(answers, Tensor)
    rows, mean = shares(output, answers), shares(output, before).mean(0)
    surprise = output.imitate(copied, answers)
    if isinstance(output, Values):
        return torch.stack([(rows - mean).abs().sum(1), surprise], 1)
    return torch.stack([uncertainty(answers)[1], (rows - mean).clamp_min(0).sum(1), surprise], 1)
