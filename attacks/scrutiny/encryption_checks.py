"""Ten reasons to believe an encrypted service, or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from secure_ml.errors import NotApplicable, require
from secure_ml.families.scrutiny import Finding, Scrutiny
from secure_ml.threats import Threat
from secure_ml.victim import Victim


@dataclass(frozen=True, kw_only=True)
class EncryptionChecks(Scrutiny):
    """Checks of inference on ciphertexts, each with its evidence (Li and Micciancio 2021, https://eprint.iacr.org/2020/1533).

    Takes a victim whose answers ``(B, *shape)`` are computed on ciphertexts, and looks at both ends: a secret key
    within the server's reach, 128 bits by two tables, numbers against the plaintext twin's (decisions alone would
    pass), headroom, exact scales, depth, foreign keys, the input range, sizes, and what decrypted answers reveal, which
    is what the paper is about; the others are errors that CKKS makes silently. Raises `NotApplicable` where nothing is
    encrypted, `UsageError` for fewer than 1 query.
    """

    needs_threat: ClassVar[bool] = False
    queries: int = 16
    """Test inputs that are encrypted, at most."""

    def __post_init__(self) -> None:
        require(self.queries >= 1, f"EncryptionChecks needs at least 1 query; given {self.queries}")

    def examine(self, victim: Victim, threat: Threat | None, examples: int, rng: torch.Generator) -> Iterator[Finding]:
        """One finding for each check, in their order."""
        tested = victim.tested(min(self.queries, examples))
        found = list(victim.served.findings(tested.inputs))
        if not found:
            raise NotApplicable(f"{victim.task.name} answers in the clear here: no encryption is to be checked")
        yield from found

    @classmethod
    def tiny(cls) -> EncryptionChecks:
        """Four queries."""
        return cls(queries=4)
