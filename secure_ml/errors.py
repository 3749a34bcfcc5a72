"""The ways in which a request can fail, each told in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class SecureMLError(Exception):
    """Base of everything this project raises on purpose; its text is one sentence that says what to do."""


class UsageError(SecureMLError, ValueError):
    """The request was wrong: what was given, what was expected, what to do. The command line exits with 2."""


class NotApplicable(SecureMLError):  # noqa: N818
    """A defense or an attack has no meaning for a task; the text is the reason that the matrix prints."""


class Refused(NotApplicable):
    """A served model answers this client no more: an attack by one client that needs more has no result.

    ``answers`` are what was revealed about the first of the inputs that were asked about last; they may be none.
    """

    def __init__(self, message: str, answers: Tensor) -> None:
        super().__init__(message)
        self.answers = answers


class BudgetExceeded(SecureMLError):  # noqa: N818
    """A metered access was asked for more than its budget; nothing was answered."""


def unknown(kind: str, name: str, names: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest ones that do."""
    known = sorted(names)
    lower = {option.lower(): option for option in known}
    near = [lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return UsageError(f"no {kind} is called {name!r}; {hint}")


def require(condition: bool, message: str) -> None:
    """Raise ``UsageError(message)`` unless the condition holds."""
    if not condition:
        raise UsageError(message)
