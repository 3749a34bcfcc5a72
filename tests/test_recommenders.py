"""Recommenders, and the baselines that they are measured beside, against plain loops."""

import math

import pytest
import torch

import secure_ml as sm
from benchmarks.recommenders import bag, ease, neighbours, popularity
from secure_ml.scores import NDCG, HitRate
from secure_ml.tasks._films import MASKED, leave_last_out, made_up, recommend, text_features, unseen, windows


def seen() -> torch.Tensor:
    """Users and films (0 is none) at random, with a film that nobody rated."""
    rated = (torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    rated[:, 0] = rated[:, 8] = 0
    return rated


def histories(rated: torch.Tensor) -> torch.Tensor:
    """What each user rated, as film numbers padded in front with 0."""
    return (rated * torch.arange(9)).long().sort(1).values


def test_hit_rate_and_gain_equal_a_loop() -> None:
    rng = torch.Generator().manual_seed(1)
    scores, target = torch.randn(40, 25, generator=rng), torch.randint(25, (40,), generator=rng)
    hits, gains = [], []
    for row, right in zip(scores.tolist(), target.tolist(), strict=True):
        place = sorted(row, reverse=True).index(row[right])
        hits.append(float(place < 10))
        gains.append(1 / math.log2(place + 2) if place < 10 else 0.0)
    assert HitRate().per_example(scores, target).tolist() == hits
    assert torch.allclose(NDCG().per_example(scores, target), torch.tensor(gains))


def test_a_constant_hits_nothing() -> None:
    assert HitRate().per_example(torch.zeros(3, 30), torch.tensor([0, 5, 29])).sum() == 0


def test_ease_equals_a_ridge_regression_of_each_film() -> None:
    rated = seen()
    history, penalty = histories(rated), 2.0
    scores = ease(rated, penalty)(history)
    for film in range(1, 9):
        others = [i for i in range(9) if i != film]
        x = rated[:, others].double()
        weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(8, dtype=x.dtype), x.T @ rated[:, film].double())
        free = rated[:, film] == 0
        assert torch.allclose(scores[free, film].double(), (x @ weights)[free], atol=1e-5)


def test_neighbours_equal_a_loop() -> None:
    rated = seen()
    history = histories(rated)
    scores = neighbours(rated, 3, 1.0)(history)
    for film in range(1, 9):
        both = [float(rated[:, film] @ rated[:, i]) for i in range(9)]
        near = [both[i] / (math.sqrt(float(rated[:, i].sum() * rated[:, film].sum())) + 1) for i in range(9)]
        near[film] = 0.0
        kept = set(sorted(range(9), key=lambda i: -near[i])[:3])
        for user in range(12):
            if not rated[user, film]:
                expected = sum(near[i] for i in kept if rated[user, i])
                assert scores[user, film].item() == pytest.approx(expected, abs=1e-5)


def test_popularity_counts_users() -> None:
    history = torch.tensor([[0, 0, 2]])
    scores = popularity(seen())(history)
    assert scores[0, 3] == seen()[:, 3].sum()
    assert scores[0, 0] == scores[0, 2] == MASKED


def test_what_was_seen_is_not_recommended() -> None:
    history = torch.tensor([[0, 3, 1], [0, 0, 0]])
    scores = unseen(torch.ones(2, 5), history)
    assert (scores == MASKED).int().tolist() == [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert bag(history, 5).tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_windows_end_before_their_target() -> None:
    part = windows((4, 7, 9, 2), 3)
    assert part.inputs["history"].tolist() == part.inputs["seen"].tolist() == [[0, 0, 4], [0, 4, 7], [4, 7, 9]]
    assert part.target.tolist() == [7, 9, 2]


def test_the_last_films_are_left_out() -> None:
    films = made_up()
    parts = leave_last_out(made_up, 8, 4, torch.Generator().manual_seed(0))
    assert len(parts.test) == len(parts.validation) == len(films.histories) - 8
    last = {(h[-1], h[-2]) for h in films.histories}
    for test, validation in zip(parts.test.target.tolist(), parts.validation.target.tolist(), strict=True):
        assert (test, validation) in last
    assert sum(map(len, (parts.train, parts.aux, parts.others))) == sum(len(h) - 3 for h in films.histories)


def test_text_tells_genre_and_year() -> None:
    films = made_up()
    features = text_features(films)
    assert features.shape[0] == len(films) + 1
    assert not features[0].any()
    same, near, far = (features[1] @ features[i] for i in (1, 3, 30))
    assert same > near > far


@pytest.mark.parametrize("name", ["recommender_mf", "recommender_bert"])
def test_films_are_recommended(name: str) -> None:
    task = sm.task(name, tiny=True)
    shown = recommend(made_up, 8, sm.fit(task, device="cpu").served, "picture 3; Picture 5 (1985)", torch.Generator())
    first, *others = shown.text.splitlines()
    assert first == "after Picture 3 (1983); Picture 5 (1985)"
    assert len(others) == 10
    assert not any("Picture 3 " in line or "Picture 5 " in line for line in others)


@pytest.mark.parametrize(("prompt", "said"), [("Zorro", "none that is called like 'Zorro'")])
def test_unknown_films_are_told_in_a_sentence(prompt: str, said: str) -> None:
    with pytest.raises(sm.UsageError, match=said):
        recommend(made_up, 8, lambda history: history, prompt, torch.Generator())
