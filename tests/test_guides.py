"""The guides' code runs, their studies are read, and the commands that they show exist."""

import re
import tomllib
from pathlib import Path

import pytest

from experiments._study import studies
from experiments.matrix import Matrix, _asked
from secure_ml.plugins import GROUPS

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = ("scale-out", "add-an-attack", "add-a-defense", "add-a-task")


def text(guide: str) -> str:
    return (DOCS / f"{guide}.md").read_text()


@pytest.mark.parametrize("guide", GUIDES)
def test_code_in_a_guide_runs(guide: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text(guide), re.DOTALL)
    exec(compile(code, str(DOCS / f"{guide}.md"), "exec"), {"__name__": "__main__"})


def test_the_study_in_a_guide_is_one(tmp_path: Path) -> None:
    (study,) = re.findall(r"```toml\n(.*?)```", text("scale-out"), re.DOTALL)
    (tmp_path / "study.toml").write_text(study)
    options, catalog = _asked([str(tmp_path / "study.toml")])
    assert options.seeds == 2
    assert catalog.attack("pgd").steps == 10
    assert all(f"`{name}`" in text("scale-out") for name in studies())


def test_options_in_a_guide_exist() -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", text("scale-out")))
    assert {name.replace("-", "_") for name in named} <= set(Matrix.__dataclass_fields__)


def test_entry_points_in_guides_are_groups() -> None:
    shown = [table for guide in GUIDES[1:] for table in re.findall(r"```toml\n(.*?)```", text(guide), re.DOTALL)]
    assert [next(iter(tomllib.loads(table)["project"]["entry-points"])) for table in shown] == list(GROUPS)
