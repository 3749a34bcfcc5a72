"""A plugin for pytest: every ``NAME.case.toml`` is a test, which runs the case again and fails where something moved.

Nothing but pytest is imported unless a case is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from experiments._case import Case

MARKS = {"slow": "takes more than a few seconds", "data": "needs data sets in the data directory (SECURE_ML_DATA)"}


def pytest_configure(config: pytest.Config) -> None:
    """Make the marks of cases known."""
    for name, about in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {about}")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect files that end in ``.case.toml``, and no others."""
    return CaseFile.from_parent(parent, path=file_path) if file_path.name.endswith(".case.toml") else None


class CaseFile(pytest.File):
    """A file with one case."""

    def collect(self) -> Iterator[pytest.Item]:
        """One test, marked as the case says; a file that cannot be read is an error with a sentence."""
        from experiments._case import SUFFIX, read
        from secure_ml.errors import UsageError

        try:
            case = read(self.path)
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        item = CaseItem.from_parent(self, name=self.path.name.removesuffix(SUFFIX))
        item.case = case
        for name in MARKS:
            if getattr(case, name):
                item.add_marker(name)
        yield item


class CaseItem(pytest.Item):
    """A case as a test."""

    case: Case

    def runtest(self) -> None:
        """Run the case again; `Moved` where something is not as expected."""
        from experiments._replay import replay

        done = replay(self.case, folder=self.path.parent)
        if done.moved:
            raise Moved(f"{done.moved} of {len(done.compared)} measurements moved\n{done}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        """What moved or could not be run, without a traceback; of other errors the traceback."""
        from secure_ml.errors import SecureMLError

        if isinstance(excinfo.value, (Moved, SecureMLError)):
            return f"{self.path}: {excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the test is: the whole file."""
        return self.path, 0, f"case {self.name}"


class Moved(AssertionError):  # noqa: N818
    """Something is not where a case expects it."""
