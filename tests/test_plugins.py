"""Methods and tasks of an installed package show up everywhere, with no change here; what is wrong with one is said."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import secure_ml as sm
from secure_ml import identity, plugins
from secure_ml.discovery import all_methods, task_builders

METHODS = '''
from dataclasses import dataclass
import torch
import secure_ml as sm

@dataclass(frozen=True, kw_only=True)
class Coin(sm.Membership):
    """A coin decides who is a member: what knowing nothing looks like."""

    reveal: str = "label"
    """How much of each answer is seen."""
    bias: float = 0.5
    """How the coin falls."""

    def score(self, access, batch, aux, rng):
        """Random, ``(B,)``."""
        return torch.rand(len(batch), generator=rng) - self.bias

@dataclass(frozen=True, kw_only=True)
class Doubled(sm.Defense):
    """Answers as they are."""

@dataclass(frozen=True, kw_only=True)
class PGD(Coin):
    """Called like another one."""

class Thawed(sm.Membership):
    """Not a dataclass."""
    reveal = "label"
    def score(self, access, batch, aux, rng):
        """Nothing."""

@dataclass(frozen=True, kw_only=True)
class Needy(Coin):
    """It has no defaults."""
    needed: int

def bare(tiny):
    """A task without defaults."""

def acme_digits(tiny: bool = False, width: int = 8) -> sm.Task:
    """The digits of Acme.

    Args:
        tiny: made in code.
        width: of the layer.
    """
    from dataclasses import replace
    return replace(sm.task("digits_mlp", tiny=True), name="acme_digits", options=f"width={width}")
'''
GOOD = """
[secure_ml.attacks]
coin = acme_guard.methods:Coin
[secure_ml.defenses]
doubled = acme_guard.methods:Doubled
[secure_ml.tasks]
acme_digits = acme_guard.methods:acme_digits
"""


def package(folder: Path, points: str) -> dict[str, str]:
    """A package that lies there as pip would have installed it; the environment that sees it."""
    code, info = folder / "acme_guard", folder / "acme_guard-1.0.dist-info"
    code.mkdir(parents=True)
    info.mkdir()
    (code / "__init__.py").touch()
    (code / "methods.py").write_text(METHODS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-guard\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])}


def call(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments._main", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for packages that this process sees as installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    for name in [name for name in sys.modules if name.startswith("acme_guard")]:
        del sys.modules[name]
    plugins._warn.cache_clear()


@pytest.mark.slow
def test_an_installed_package_adds_methods_and_tasks(tmp_path: Path) -> None:
    """In the list, the command line, its options and the matrix; a worker process has them too."""
    environment = package(tmp_path / "site", GOOD)
    listed = call(environment, "list")
    assert all(f"\n  {name} " in listed.stdout for name in ("coin", "doubled", "acme_digits", "pgd", "digits_cnn"))
    argv = ["--task", "acme_digits(width=4)", "--defense", "none", "doubled", "--attack", "coin", "--coin.bias", "0.25"]
    argv += ["--seeds", "2", "--workers", "2", "--json", "--out", str(tmp_path / "out")]
    done = call(environment, "matrix", *argv)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["task"] for row in rows} == {"acme_digits(width=4)"}
    assert {row["defenses"] for row in rows} == {"none", "Doubled()"}
    assert "Coin(bias=0.25)" in {row["attack"] for row in rows}


def test_they_are_found(site: Path) -> None:
    package(site, GOOD)
    assert all_methods("attacks", sm.Attack)["coin"]().bias == 0.5
    assert "doubled" in all_methods("defenses", sm.Defense)
    made = task_builders.__wrapped__()["acme_digits"](width=4)
    assert repr(made) == "acme_digits(width=4)"
    assert "acme_guard" in plugins.outside_packages.__wrapped__()


@pytest.mark.parametrize(
    ("point", "wrong"),
    [
        ("gone = acme_guard.nowhere:f", "ModuleNotFoundError: No module named 'acme_guard.nowhere'"),
        ("gone = acme_guard.methods:nothing", "AttributeError: module 'acme_guard.methods' has no attribute"),
        ("gone = acme_guard.methods:Doubled", "it is no class that inherits from Attack"),
        ("gone = acme_guard.methods:Thawed", "Thawed is no frozen dataclass"),
        ("gone = acme_guard.methods:Needy", "Needy() fails (TypeError: "),
    ],
)
def test_what_is_wrong_is_said(site: Path, point: str, wrong: str) -> None:
    """A broken entry point is named once and left out; the others stay, and so does everything of the house."""
    package(site, f"[secure_ml.attacks]\ncoin = acme_guard.methods:Coin\n{point}\n")
    with pytest.warns(UserWarning, match="acme-guard: the entry point gone = .* is left out") as caught:
        found = all_methods("attacks", sm.Attack)
    assert wrong in str(caught[0].message)
    assert {"coin", "pgd"} <= set(found)
    assert "gone" not in found
    all_methods("attacks", sm.Attack)  # says nothing more: a warning is an error here


@pytest.mark.parametrize(
    ("point", "name"), [("pgd = acme_guard.methods:Coin", "pgd"), ("mine = acme_guard.methods:PGD", "PGD")]
)
def test_a_name_that_is_taken_is_refused(site: Path, point: str, name: str) -> None:
    package(site, f"[secure_ml.attacks]\n{point}\n")
    with pytest.raises(sm.UsageError, match=f"acme-guard and secure-ml both have the attack {name}: rename one"):
        all_methods("attacks", sm.Attack)


def test_a_task_must_have_defaults(site: Path) -> None:
    package(site, "[secure_ml.tasks]\nbare = acme_guard.methods:bare\n")
    with pytest.warns(UserWarning, match="its option tiny has no default, or no type"):
        assert "bare" not in task_builders.__wrapped__()


def test_the_source_of_an_added_method_is_part_of_its_cells_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its package is an installed one, of which otherwise nothing but the version counts."""
    package(tmp_path / "site", GOOD)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(identity.sysconfig, "get_path", lambda kind: str(tmp_path / "site"))
    monkeypatch.setattr(identity, "outside_packages", frozenset)
    assert not identity._followed.__wrapped__("acme_guard.methods")
    monkeypatch.setattr(identity, "outside_packages", lambda: frozenset({"acme_guard"}))
    assert identity._followed.__wrapped__("acme_guard.methods")
