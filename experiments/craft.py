"""Attack a kept model and write the examples to files: as they were, as they were changed, and what was answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from safetensors.torch import save_file
from torch import Tensor

from experiments._catalog import parse, set_data_directory, threat_of
from secure_ml.batch import Batch, Tree, leaves
from secure_ml.errors import require
from secure_ml.families.evasion import Evasion
from secure_ml.vault import key_from
from secure_ml.victim import Victim, writable


@dataclass(frozen=True)
class Craft:
    """Attack a model that ``secure-ml fit`` kept, and write the examples to files."""

    task: tyro.conf.Positional[str]
    """The task: digits_cnn, or digits_cnn(width=8), as it was fitted."""
    attack: str = "auto_attack"
    """The evasion attack: pgd, or targeted(target=3)."""
    defense: str = "none"
    """The stack that the model was fitted with."""
    model: Path | None = None
    """Folder of the model; runs/fit/TASK unless given."""
    threat: str | None = None
    """What may be changed: Linf(0.1), Edits(2); the task's own unless given."""
    examples: int = 100
    """Test examples that are attacked, at most."""
    seed: int = 0
    """Of the attack."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    out: Path = Path("runs/craft")
    """Folder for examples.safetensors (and sheet.png, of images)."""
    key_file: Path | None = None
    """File with the key by which the weights were encrypted; or else SECURE_ML_KEY, where that is set."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Load, attack, write."""
    options, catalog = parse(Craft, argv, "secure-ml craft")
    set_data_directory(options.data_dir)
    require(options.examples >= 1, f"--examples must be at least 1; given {options.examples}")
    task, stack, attack = catalog.task(options.task), catalog.stack(options.defense), catalog.attack(options.attack)
    require(isinstance(attack, Evasion), f"{options.attack!r} changes no inputs: name an evasion attack, pgd say")
    assert isinstance(attack, Evasion)
    folder = options.model or Path("runs") / "fit" / task.name
    victim = Victim.load(folder, task, stack, device=options.device, key=key_from(options.key_file))
    threat = threat_of(options.threat) if options.threat else None
    clean, changed = attack.craft(victim, threat=threat, seed=options.seed, examples=options.examples)
    out = writable(options.out)
    save_file(tensors(victim, clean, changed), out / "examples.safetensors")
    print(f"{len(clean)} examples, before and after, with targets and answers, are in {out / 'examples.safetensors'}")
    if isinstance(clean.inputs, Tensor) and clean.inputs.ndim == 4:
        _sheet(clean.inputs, _tensor(changed.inputs), out / "sheet.png")
        print(f"the first of them are drawn in {out / 'sheet.png'}")
    return 0


def tensors(victim: Victim, clean: Batch, changed: Batch) -> dict[str, Tensor]:
    """Everything about the examples by name: ``clean``, ``changed``, ``target`` and the served answers to both."""
    named = {
        **dict(_named("clean", clean.inputs)),
        **dict(_named("changed", changed.inputs)),
        **dict(_named("target", clean.target)),
        "answers.clean": victim.served(clean.inputs),
        "answers.changed": victim.served(changed.inputs),
    }
    return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def _named(name: str, tree: Tree) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree by path; a tensor alone has the name itself."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    yield from ((f"{name}.{i}", leaf.clone()) for i, leaf in enumerate(leaves(tree)))


def _tensor(tree: Tree) -> Tensor:
    assert isinstance(tree, Tensor)
    return tree


def _sheet(clean: Tensor, changed: Tensor, path: Path) -> None:
    """Eight images in three rows: clean, changed, and the difference around gray, stretched to its largest value."""
    from torchvision.utils import save_image

    before, after = clean[:8].cpu(), changed[:8].cpu()
    difference = after - before
    shown = 0.5 + difference / (2 * difference.abs().max().clamp(min=1e-6))
    save_image([*before, *after, *shown], str(path), nrow=len(before))
