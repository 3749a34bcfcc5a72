"""The house stands as it was drawn: imports one way, one class a file, everything named found."""

import ast
import dataclasses
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import secure_ml as sm
from secure_ml.errors import UsageError
from secure_ml.identity import VIEWS

ROOT = Path(__file__).parent.parent
LAYERS = ["secure_ml", "attacks", "defenses", "experiments"]
HEAVY = {"opacus", "tenseal", "art", "torchvision", "matplotlib", "sklearn", "scipy"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether it does so on being imported itself."""
    tree = ast.parse(path.read_text())
    typing = {n for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
              for n in ast.walk(block)}  # fmt: skip
    inner = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            yield name, node not in inner and node not in typing


def upward_imports(layers: list[str], root: Path) -> list[str]:
    """Imports against the direction secure_ml <- attacks <- defenses <- experiments."""
    found = []
    for height, layer in enumerate(layers):
        for path in (root / layer).rglob("*.py"):
            above = set(layers[height + 1 :])
            found += [f"{path.name}: {name}" for name, _ in imports(path) if name.partition(".")[0] in above]
    return found


def test_imports_run_one_way() -> None:
    assert not upward_imports(LAYERS, ROOT)


def test_the_import_law_fires(tmp_path: Path) -> None:
    for layer in LAYERS:
        (tmp_path / layer).mkdir()
    (tmp_path / "secure_ml" / "core.py").write_text("def f():\n    from attacks import PGD\n")
    assert upward_imports(LAYERS, tmp_path) == ["core.py: attacks"]


def test_heavy_libraries_are_imported_late() -> None:
    early = [
        f"{path.relative_to(ROOT)}: {name}"
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        for name, at_import in imports(path)
        if at_import and name.partition(".")[0] in HEAVY
    ]
    assert not early


def test_one_training_loop() -> None:
    """Only the training loop steps an optimizer or calls backward."""
    steps = [
        str(path.relative_to(ROOT))
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        if ".backward()" in path.read_text() or "optimizer.step()" in path.read_text()
    ]
    assert steps == ["secure_ml/training.py"]


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }
    assert listed == there


def test_public_names_exist() -> None:
    import attacks
    import defenses

    for name in sm.__all__:
        assert getattr(sm, name) is not None
    assert attacks.PGD(steps=3) == attacks.PGD.tiny()
    assert defenses.DPSGD(epsilon=1.0).epsilon == 1.0
    with pytest.raises(AttributeError, match="Nope"):
        _ = attacks.Nope


def test_two_classes_of_one_name_collide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / "toys" / part).mkdir(parents=True)
        (tmp_path / "toys" / part / "__init__.py").touch()
        (tmp_path / "toys" / part / "same.py").write_text(
            "from secure_ml.defense import Defense\nclass Same(Defense):\n    pass\n"
        )
    (tmp_path / "toys" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="one file, one class"):
        sm.discovery.methods("toys", sm.Defense)


def test_a_new_file_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One new file with one class, and it is there: no list to add it to."""
    (tmp_path / "plugs").mkdir()
    (tmp_path / "plugs" / "__init__.py").touch()
    (tmp_path / "plugs" / "rounding.py").write_text(
        "from dataclasses import dataclass\nfrom secure_ml.defense import Defense\n\n"
        '@dataclass(frozen=True, kw_only=True)\nclass Rounding(Defense):\n    """Rounds."""\n    decimals: int = 1\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = sm.discovery.methods("plugs", sm.Defense).items()
    assert found[0] == "rounding"
    assert repr(found[1](decimals=2)) == "Rounding(decimals=2)"
    assert [f.name for f in dataclasses.fields(found[1])] == ["decimals"]


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="did you mean digits_cnn"):
        sm.task("digit_cnn")
    with pytest.raises(UsageError, match="no option of digits_cnn is called 'widht'; did you mean width"):
        sm.task("digits_cnn", widht=3)


def test_help_needs_no_torch() -> None:
    code = "import sys; from experiments._main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "matrix" in done.stdout


def test_no_file_holds_two_ideas() -> None:
    long = {p.name: n for p in ROOT.glob("*/**/*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def test_views_are_looked_at_by_views_alone() -> None:
    """Or a cell could change with what its name leaves out."""
    for path in (ROOT / "secure_ml").rglob("*.py"):
        if path.stem not in VIEWS and path.parent.name == "secure_ml":
            named = {name for name in VIEWS if f"from secure_ml.{name} import" in path.read_text()}
            assert not named, f"{path.name} imports {named}"
