"""Where a run keeps its folders: a directory here, or any place that fsspec reaches."""

from __future__ import annotations

import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secure_ml.errors import UsageError, require
from secure_ml.victim import atomic_folder

DONE = "done"
"""The file that is written last into a remote folder: where it is missing, the folder is a draft."""
STALE = 3600.0
"""Seconds after which a draft is taken for a killed run's."""


class Shelf(ABC):
    """Folders by name, each there whole or not at all, and a few small texts beside them."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the folder of that name is there."""

    @abstractmethod
    def take(self, name: str) -> AbstractContextManager[Path]:
        """The folder of that name, as a directory here, to be read."""

    @abstractmethod
    def draft(self, name: str) -> AbstractContextManager[Path]:
        """A directory here that becomes the folder of that name when the block ends well."""

    @abstractmethod
    def unfinished(self, name: str) -> Path:
        """A directory here for work in progress, which another process may go on with where it can be seen."""

    @abstractmethod
    def read(self, name: str) -> str:
        """A small text; empty where there is none."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Keep a small text in place of what was there."""

    def sweep(self) -> None:  # noqa: B027
        """Remove drafts that killed runs left behind more than an hour ago, where there can be any."""


@dataclass(frozen=True)
class Local(Shelf):
    """A directory of this machine, or one that several machines share."""

    folder: Path

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return (self.folder / name).exists()

    def take(self, name: str) -> AbstractContextManager[Path]:
        """The directory itself."""
        return nullcontext(self.folder / name)

    def draft(self, name: str) -> AbstractContextManager[Path]:
        """A hidden directory beside its place."""
        return atomic_folder(self.folder / name)

    def unfinished(self, name: str) -> Path:
        """A directory of its own, so that a killed run's work is gone on with."""
        return self.folder / "checkpoints" / name

    def read(self, name: str) -> str:
        """The text."""
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def write(self, name: str, text: str) -> None:
        """All or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}"
        draft.write_text(text)
        draft.replace(self.folder / name)

    def sweep(self) -> None:
        """Remove old drafts."""
        for draft in (*self.folder.glob("cells/.*"), *self.folder.glob("models/.*")):
            with suppress(FileNotFoundError):  # another run's, just finished
                if time.time() - draft.stat().st_mtime > STALE:
                    shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True)
class Remote(Shelf):
    """A place with a URL, ``s3://bucket/run`` say, through fsspec. A folder counts once its last file is there.

    Work in progress stays on the machine that does it. Raises `UsageError` where fsspec, or what it needs for this
    kind of place, is not installed.
    """

    url: str

    def __post_init__(self) -> None:
        self._place()

    def _place(self) -> tuple[Any, str]:
        if find_spec("fsspec") is None:
            raise UsageError(
                f"{self.url} needs fsspec, which is not installed: pip install fsspec (the extra 'cluster')"
            )
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(f"{self.url} cannot be reached: {error}") from None
        return system, root.rstrip("/")

    def has(self, name: str) -> bool:
        """Whether its last file is there."""
        system, root = self._place()
        system.invalidate_cache()
        return bool(system.exists(f"{root}/{name}/{DONE}"))

    @contextmanager
    def take(self, name: str) -> Iterator[Path]:
        """A copy, which vanishes after the block."""
        system, root = self._place()
        with tempfile.TemporaryDirectory() as folder:
            for path in system.ls(f"{root}/{name}", detail=False):
                if not path.endswith(f"/{DONE}"):
                    system.get_file(path, str(Path(folder) / path.rpartition("/")[2]))
            yield Path(folder)

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """A temporary directory, whose files are sent when the block ends well."""
        system, root = self._place()
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / "draft"
            draft.mkdir()
            yield draft
            system.makedirs(f"{root}/{name}", exist_ok=True)
            for path in sorted(draft.iterdir()):
                system.put_file(str(path), f"{root}/{name}/{path.name}")
            system.pipe_file(f"{root}/{name}/{DONE}", b"")

    def unfinished(self, name: str) -> Path:
        """A directory of this machine."""
        return Path(tempfile.gettempdir()) / "secure-ml-checkpoints" / name

    def read(self, name: str) -> str:
        """The text."""
        system, root = self._place()
        path = f"{root}/{name}"
        return str(system.cat_file(path).decode()) if system.exists(path) else ""

    def write(self, name: str, text: str) -> None:
        """As one object."""
        system, root = self._place()
        system.makedirs(root, exist_ok=True)
        system.pipe_file(f"{root}/{name}", text.encode())

    def send(self, folder: Path) -> None:
        """Copy every file of a directory here to this place."""
        system, root = self._place()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            there = f"{root}/{path.relative_to(folder).as_posix()}"
            system.makedirs(there.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), there)


def shelf_at(place: Path | str) -> Local | Remote:
    """The shelf at a directory or a URL; ``file://`` is a directory. Raises `UsageError` for a URL without a path."""
    text = str(place)
    if text.startswith("file://"):
        return Local(Path(text.removeprefix("file://")))
    if isinstance(place, Path) or "://" not in text:
        return Local(Path(text))
    require(bool(text.partition("://")[2].strip("/")), f"{text} names no folder: give one, {text.rstrip('/')}/run say")
    return Remote(text)
