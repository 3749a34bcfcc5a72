"""Three seams for a defense, one for each stage of a model's life."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from torch import nn

from secure_ml.settings import brief

if TYPE_CHECKING:
    from secure_ml.families.evasion import Evasion
    from secure_ml.task import Task
    from secure_ml.training import Plan
    from secure_ml.victim import Victim


class Defense:
    """Every seam is the identity; a defense overrides the ones it needs, and defenses compose by listing.

    A defense is a frozen dataclass whose fields are its settings and whose repr is its name in every table.
    """

    misleads: ClassVar[bool] = False
    """Whether some of what it serves is, on purpose, another decision than the module's, in every setting of it."""

    def __init_subclass__(cls) -> None:
        cls.__repr__ = brief  # type: ignore[method-assign]

    def check(self, task: Task) -> None:
        """Raise `NotApplicable` with the reason where this defense has no meaning for a task."""

    def adapt(self, module: nn.Module) -> nn.Module:
        """Build: the architecture to train, before its optimizer exists."""
        return module

    def prepare(self, plan: Plan) -> Plan:
        """Train: the parts of the training loop, each acting like the part that was given."""
        return plan

    def serve(self, victim: Victim) -> Victim:
        """Serve: what is answered to everybody who does not hold the weights."""
        return victim

    def rehearses(self, task: Task) -> Evasion | None:
        """The attack that its training meets, where there is one: measuring with it alone proves nothing."""
        return None

    @classmethod
    def tiny(cls) -> Self:
        """A setting on which the laws run in a second."""
        return cls()

    @classmethod
    def neutral(cls) -> Self | None:
        """The setting that changes nothing in training; None where there is no such setting."""
        return None

    @classmethod
    def trains(cls) -> bool:
        """Whether the trained weights depend on this defense."""
        return cls.adapt is not Defense.adapt or cls.prepare is not Defense.prepare


def stack_name(defenses: tuple[Defense, ...]) -> str:
    """How a stack of defenses is called in every table; the bare model is ``none``."""
    return " + ".join(map(repr, defenses)) or "none"
