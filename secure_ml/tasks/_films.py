"""MovieLens: what users rated, in the order of time, and the film that came next."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from secure_ml.batch import Batch, Splits, Tree, join
from secure_ml.data import find, hashed_tokens
from secure_ml.errors import UsageError
from secure_ml.scores import TOP
from secure_ml.task import Predictor, Sample

LENGTH = 50
"""Films of a history that a recommender is given."""
WORDS = 192
"""Numbers into which the words of titles are hashed."""
ASSUMED = (
    "the catalogue of films is public",
    f"one moment is to be hidden: a rating lies in up to {LENGTH + 1} of them, a user in as many as films rated",
)
MASKED = -1e4
"""The score of a film that is not to be recommended: too low for any list, and finite."""


@dataclass(frozen=True, eq=False)
class Films:
    """A catalogue, numbered from 1 (0 is no film), and the films that each user rated, oldest first."""

    titles: tuple[str, ...]
    genres: tuple[str, ...]
    """Of each film, separated by blanks."""
    histories: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.titles) - 1


@cache
def movielens() -> Films:
    """The small MovieLens of 2016: a catalogue of 9,125 films and 100,004 ratings by 671 users.

    Ratings of one second are put in an order that depends on neither the film's number nor the seed.
    """
    catalogue, ratings = (
        find(f"movielens/mlsmall_{name}.csv", f"{name}.csv of MovieLens' ml-latest-small (2016)")
        for name in ("movies", "ratings")
    )
    try:
        with catalogue.open(newline="", encoding="utf-8") as file:
            films = list(csv.DictReader(file))
        number = {film["movieId"]: i for i, film in enumerate(films, start=1)}
        users: dict[str, list[tuple[int, int, int]]] = {}
        with ratings.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                user, film_id = row["userId"], row["movieId"]
                tie = zlib.crc32(f"{user} {film_id}".encode())
                users.setdefault(user, []).append((int(row["timestamp"]), tie, number[film_id]))
        return Films(
            titles=("", *(film["title"] for film in films)),
            genres=("", *(film["genres"].replace("|", " ") for film in films)),
            histories=tuple(tuple(film for _, _, film in sorted(rated)) for rated in users.values()),
        )
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{catalogue} and {ratings} do not fit together: put both of one release there") from None


_KINDS = ("Comedy", "Drama")


@cache
def made_up() -> Films:
    """30 films of two genres and 28 users who rate 8 to 15 of them, about nine in ten of the genre they like."""
    rng = torch.Generator().manual_seed(0)
    histories = []
    for user in range(28):
        liked = (torch.arange(1, 31) % 2 == user % 2).double()
        count = int(torch.randint(8, 16, (1,), generator=rng).item())
        rated = torch.multinomial(liked * 0.8 + 0.1, count, generator=rng) + 1
        histories.append(tuple(rated.tolist()))
    titles = ("", *(f"Picture {i} ({1980 + i})" for i in range(1, 31)))
    return Films(titles, ("", *(_KINDS[i % 2] for i in range(1, 31))), tuple(histories))


def windows(history: tuple[int, ...], length: int) -> Batch:
    """Every film but the first as target ``(n - 1,)``, and the ``length`` before it, padded in front with 0."""
    rated = torch.tensor(history)
    padded = torch.cat([rated.new_zeros(length), rated])
    return Batch(viewer(padded.unfold(0, length, 1)[1:-1].contiguous()), rated[1:])


def viewer(history: Tensor) -> dict[str, Tree]:
    """A history ``(B, L)`` to be read, and once more as the list of what not to recommend again.

    An adversary who rewrites ratings of a profile changes only the first: otherwise, to write the very film that comes
    next would be an attack that always succeeds, and says nothing about the model.
    """
    return {"history": history, "seen": history}


def leave_last_out(films: Callable[[], Films], length: int, held: int, rng: torch.Generator) -> Splits:
    """Each user's last film to test, the one before to validate, all earlier ones to train.

    ``held`` users each are the adversary's and the non-members', of whom nothing is trained on. Of theirs, too,
    the last two films are left out, so that they are like the members. Moments of all users are mixed, so that the
    first of a part are like the rest.
    """
    known = films()
    parts = groups(known, held, rng)
    aux, others, members = ([windows(known.histories[user], length) for user in part] for part in parts)

    def early(users: list[Batch]) -> tuple[Batch, Tensor]:
        moments = _join([user.take(slice(0, -2)) for user in users])
        whose = torch.cat([torch.full((len(user) - 2,), place) for place, user in enumerate(users)])
        order = torch.randperm(len(moments), generator=rng)
        return moments.take(order), whose[order]

    train, owner = early(members)
    return Splits(
        train=train,
        validation=_join([user.take(slice(-2, -1)) for user in members]),
        test=_join([user.take(slice(-1, None)) for user in members]),
        aux=early(aux)[0],
        others=early(others)[0],
        owner=owner,
    )


def groups(films: Films, held: int, rng: torch.Generator) -> list[list[int]]:
    """Users at random: ``held`` of the adversary, ``held`` non-members, and all others, the members."""
    order = torch.randperm(len(films.histories), generator=rng)
    return [part.tolist() for part in order.split([held, held, len(order) - 2 * held])]


def _join(users: list[Batch]) -> Batch:
    return Batch(join([user.inputs for user in users]), join([user.target for user in users]))


def unseen(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores ``(B, V + 1)`` in which no film, and what was seen ``(B, L)``, is never recommended."""
    nothing = seen.new_zeros(len(seen), 1)
    return scores.scatter(1, torch.cat([nothing, seen], 1), MASKED)


def text_features(films: Films) -> Tensor:
    """What catalogue and hashing tell of each film, ``(V + 1, features)``: words of its title, genres, and year.

    Each of the three has length 1 (or 0, where there is nothing); rare words count more.
    """
    kinds = sorted({genre for genres in films.genres for genre in genres.split()})
    genres = torch.tensor([[float(kind in genres.split()) for kind in kinds] for genres in films.genres])
    names = [re.sub(r"[^a-z0-9 ]", "", re.sub(r"\(\d{4}\)$", "", title.lower().strip())) for title in films.titles]
    words = F.one_hot(hashed_tokens(names, WORDS + 1, 12), WORDS + 1).sum(1)[:, 1:].float()
    words *= (len(films) / (1 + words.count_nonzero(0))).log()
    found = [re.search(r"\((\d{4})\)$", title.strip()) for title in films.titles]
    years = torch.tensor([[float(year[1]) if year else 0.0] for year in found])
    near = (-((years - torch.arange(1900, 2021, 5)) / 5).square()).exp()
    return torch.cat([F.normalize(words), F.normalize(genres), F.normalize(near)], 1)


def recommend(
    films: Callable[[], Films], length: int, predictor: Predictor, prompt: str, rng: torch.Generator
) -> Sample:
    """The ten films to watch after those that the prompt names, the latest last: "Toy Story (1995); Heat (1995)".

    Without a prompt, after one at random.
    """
    known = films()
    asked = [title.strip() for title in prompt.split(";") if title.strip()]
    seen = [_number(known, title) for title in asked] or [int(torch.randint(1, len(known) + 1, (1,), generator=rng))]
    history = torch.tensor([([0] * length + seen)[-length:]])
    best = predictor(viewer(history))[0].topk(TOP).indices.tolist()
    lines = ["after " + "; ".join(known.titles[film] for film in seen)]
    lines += [f"{place:2}. {known.titles[film]}" for place, film in enumerate(best, start=1)]
    return Sample("\n".join(lines))


def _number(films: Films, title: str) -> int:
    """The film of that title, with or without its brackets; else one that begins so, or is spelt nearly so."""
    full = {_plain(known): film for film, known in reversed(list(enumerate(films.titles))) if film}
    bare = {known.partition(" (")[0]: film for known, film in full.items()}
    asked = _plain(title)
    for names in (full, bare):
        if asked in names:
            return names[asked]
    begun = [film for known, film in full.items() if known.startswith((f"{asked} ", f"{asked}:"))]
    if begun:
        return min(begun)
    for names in (full, bare):
        near = get_close_matches(asked, names, n=1, cutoff=0.75)
        if near:
            return names[near[0]]
    raise UsageError(f"the catalogue of {len(films):,} films has none that is called like {title!r}")


def _plain(title: str) -> str:
    """Lower case, with "Matrix, The (1999)" as "the matrix (1999)"."""
    name, bracket, year = title.lower().partition(" (")
    for article in ("the", "a", "an"):
        if name.endswith(f", {article}"):
            name = f"{article} {name.removesuffix(f', {article}')}"
    return name + bracket + year
