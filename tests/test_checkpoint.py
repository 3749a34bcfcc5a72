"""A training that is killed goes on from its checkpoint to the weights that it would have had."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import secure_ml as sm
from defenses import DPSGD, AdversarialTraining
from secure_ml.checkpoint import Checkpoint, Randomness
from secure_ml.randomness import seeded
from secure_ml.training import Step, make_plan, train
from tests.laws import same, tiny_task


class Killed(Exception):  # noqa: N818
    """Stands for the end of a process."""


def interrupted(task: sm.Task, stack: list[sm.Defense], folder: Path, epoch: int) -> None:
    """Train until an epoch begins, and die."""

    def die(step: Step) -> None:
        if step.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        sm.fit(task, stack, seed=3, device="cpu", observers=[die], checkpoint=folder)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))


STACKS = {
    "bare": [],
    "AdversarialTraining": [AdversarialTraining()],
    "DPSGD": [DPSGD(noise=1.0)],
    "both": [AdversarialTraining(), DPSGD(noise=1.0)],
}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", ["digits_cnn", "text_embedding"])
def test_a_killed_training_ends_like_one_that_was_not(name: str, stack: list[sm.Defense], tmp_path: Path) -> None:
    task, folder = tiny_task(name), tmp_path / "unfinished"
    whole = sm.fit(task, stack, seed=3, device="cpu")
    interrupted(task, stack, folder, epoch=2)
    assert folder.exists()
    seen: list[int] = []
    resumed = sm.fit(
        task, stack, seed=3, device="cpu", checkpoint=folder, observers=[lambda step: seen.append(step.epoch)]
    )
    assert min(seen) == 2, "the epochs before were trained again"
    assert same(list(resumed.module.state_dict().values()), list(whole.module.state_dict().values()))
    assert resumed.claims == whole.claims, "spent budget was lost"
    assert not folder.exists()


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    interrupted(tiny_task("digits_cnn"), [], folder, epoch=2)
    seen: list[int] = []
    sm.fit(
        tiny_task("digits_cnn"),
        [AdversarialTraining()],
        seed=3,
        device="cpu",
        checkpoint=folder,
        observers=[lambda step: seen.append(step.epoch)],
    )
    assert min(seen) == 0


@pytest.mark.parametrize("damage", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_begun_anew(damage: str, tmp_path: Path) -> None:
    folder, task = tmp_path / "unfinished", tiny_task("digits_cnn")
    interrupted(task, [], folder, epoch=2)
    (folder / damage).write_bytes(b"{")
    whole, again = (sm.fit(task, seed=3, device="cpu", checkpoint=place) for place in (None, folder))
    assert same(list(again.module.state_dict().values()), list(whole.module.state_dict().values()))


def test_a_checkpoint_without_the_random_stream_is_noticed(tmp_path: Path) -> None:
    """The broken case: one forgotten part, and the resumed weights differ."""
    task, folder = tiny_task("digits_cnn"), tmp_path / "unfinished"
    whole = sm.fit(task, seed=3, device="cpu")
    interrupted(task, [], folder, epoch=2)
    plan = make_plan(task, [], 3, torch.device("cpu"))
    kept = Checkpoint(folder, {})
    kept.about = json.loads((folder / "state.json").read_text())["about"]
    forgotten = {**plan.state, "rng 0": Lost()}
    with seeded(3, "train"):
        train(replace(plan, state=forgotten), kept)
    assert not same(list(plan.module.state_dict().values()), list(whole.module.state_dict().values()))


class Lost(Randomness):
    """A part that forgets."""

    def load_state_dict(self, state: object) -> None:
        pass


def test_a_state_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    parts = {"module": torch.nn.Linear(3, 2)}
    Checkpoint(tmp_path / "unfinished", {}).save(parts, epoch=0)
    with pytest.raises(sm.UsageError, match="does not fit this one: delete that folder"):
        Checkpoint(tmp_path / "unfinished", {}).restore({"module": torch.nn.Linear(5, 2)})


def test_seconds_before_the_kill_count(tmp_path: Path) -> None:
    task, folder = tiny_task("digits_cnn"), tmp_path / "unfinished"
    interrupted(task, [], folder, epoch=2)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "seconds": 1000.0}))
    assert sm.fit(task, seed=3, device="cpu", checkpoint=folder).seconds > 1000


def test_adversarial_training_does_not_stop_early() -> None:
    task = tiny_task("digits_cnn")
    hasty = replace(task, recipe=replace(task.recipe, patience=1))
    assert make_plan(hasty, [], 0, torch.device("cpu")).patience == 1
    assert make_plan(hasty, [AdversarialTraining()], 0, torch.device("cpu")).patience is None
