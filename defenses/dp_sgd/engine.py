"""Clipped sums of the gradients of single examples from one backward pass: book-keeping."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn

from defenses.dp_sgd.layers import Call, Kept, Record, record
from secure_ml.errors import UsageError


class Book:
    """What one layer saw since the last time it was read."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer, self.name = layer, name
        self.trained: list[nn.Parameter] = []
        """The layer's own parameters, while they are hidden from autograd."""
        self.calls: list[Call] = []


class Engine:
    """Sums over examples of gradients, each clipped to length ``clip``: book-keeping of Bu et al. 2022.

    https://arxiv.org/abs/2210.00038. Layers note their inputs and the gradients of their outputs while a loss is
    differentiated, the gradients of weights are not computed at all, and from the notes each layer makes norms and
    sums in the cheaper of two ways. An example may be ``group`` rows of the batch in turn: copies of it, or the records
    of one person.

    An example whose gradient is not finite contributes nothing. The module is watched through hooks, and is otherwise
    the module that it was; weights that are used outside of the layer that owns them are refused.
    """

    def __init__(self, module: nn.Module, clip: float, group: int = 1) -> None:
        self.module, self.clip, self.group = module, clip, group
        self.books = [
            Book(layer, name)
            for name, layer in module.named_modules()
            if any(p.requires_grad for p in layer.parameters(recurse=False))
        ]
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.watching, self.rows = True, 0
        self.total: dict[nn.Parameter, Tensor] = {}
        self.handles: list[Any] = []
        for book in self.books:
            self._watch(book)
        _WATCHED.add(module)

    def _watch(self, book: Book) -> None:
        def before(layer: nn.Module, _: Any) -> None:
            if self.watching and torch.is_grad_enabled():
                book.trained = [p for p in layer.parameters(recurse=False) if p.requires_grad]
                for parameter in book.trained:
                    parameter.requires_grad_(False)

        def after(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Any) -> Any:
            hidden, book.trained = book.trained, []
            for parameter in hidden:
                parameter.requires_grad_(True)
            if not hidden or out is None:  # out is None where the layer raised
                return None
            return self._tapped(book, (*inputs, *named.values()), out)

        register: Any = book.layer
        self.handles += [
            register.register_forward_pre_hook(before),
            register.register_forward_hook(after, always_call=True, with_kwargs=True),
        ]

    def _tapped(self, book: Book, inputs: tuple[Any, ...], out: Any) -> Any:
        if not (isinstance(out, Tensor) and inputs and all(isinstance(part, Tensor) for part in inputs)):
            raise UsageError(
                "DP-SGD reads gradients off layers that take and give tensors; "
                f"{book.name} ({type(book.layer).__name__}) does not"
            )
        seen = tuple(part.detach() for part in inputs)

        def note(slope: Tensor) -> None:
            book.calls.append((seen, slope.detach()))

        if not out.requires_grad:
            out = cast("Tensor", _Source.apply(out, torch.empty(0, requires_grad=True)))
        out.register_hook(note)
        return out

    def expect(self, examples: int) -> None:
        """How many examples the losses that are differentiated next belong to."""
        self.rows = examples * self.group

    def gather(self) -> None:
        """Add the clipped gradients of the examples that were just differentiated to the total."""
        if not self.rows:
            for book in self.books:
                book.calls.clear()
            return
        found, squares = self.read()
        ok = squares.isfinite()
        factors = torch.where(ok, (self.clip / (squares.sqrt() + 1e-6)).clamp(max=1.0), 0.0)
        for parameter, value in self.sums(found, factors, clean=bool(ok.all())).items():
            self.total[parameter] = self.total[parameter] + value if parameter in self.total else value

    def read(self) -> tuple[list[tuple[Book, Record]], Tensor]:
        """The layers' records of what was differentiated since the last time, and squared norms ``(b,)``."""
        self._refuse_strangers()
        count = self.rows // self.group
        with self.paused():
            found = _untied([(book, self._record(book, count)) for book in self.books if book.calls])
        squares = self.parameters[0].new_zeros(count)
        for _, kept in found:
            squares = squares + kept.squares()
        return found, squares

    def _record(self, book: Book, count: int) -> Record:
        calls, book.calls = book.calls[::-1], []
        for inputs, slope in calls:
            if slope.shape[0] != self.rows or any(part.shape[0] != self.rows for part in inputs):
                raise UsageError(
                    f"the gradient of an example in {book.name} is not its own: {type(book.layer).__name__} was called "
                    f"on {inputs[0].shape[0]} rows for {self.rows} examples, so that the loss or the module mixes "
                    "examples, or spreads one over several rows; DP-SGD could not bound what it contributes"
                )
        return record(book.layer, calls, count)

    def sums(
        self, found: list[tuple[Book, Record]], weights: Tensor, *, clean: bool = True
    ) -> dict[nn.Parameter, Tensor]:
        """Sums over examples with weights ``(b,)``; where not all is ``clean``, what has no weight is left out."""
        sums: dict[nn.Parameter, Tensor] = {}
        for book, kept in found:
            made = kept.sums(weights) if clean else _without(kept.rows(), weights)
            for name, value in made.items():
                parameter = book.layer.get_parameter(name)
                sums[parameter] = sums[parameter] + value if parameter in sums else value
        return sums

    def take(self) -> list[Tensor]:
        """The total for each trained parameter, which starts at 0 again."""
        total, self.total = self.total, {}
        return [total[p] if p in total else torch.zeros_like(p) for p in self.parameters]

    def _refuse_strangers(self) -> None:
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                raise UsageError(
                    f"{name} is used outside of the layer that owns it, where the gradient of an example is not its "
                    "own to be clipped; give DP-SGD a module whose weights are used by their layers alone"
                )

    @contextmanager
    def paused(self, module: nn.Module | None = None) -> Iterator[None]:
        """Inside it, the module is run and differentiated like any other, and nothing is noted."""
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before

    def detach(self) -> None:
        """Leave the module as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        _WATCHED.discard(self.module)


def is_private(module: nn.Module) -> bool:
    """Whether an engine watches a module: each example's gradient is then clipped on its own."""
    return module in _WATCHED


_WATCHED: WeakSet[nn.Module] = WeakSet()


class _Source(torch.autograd.Function):
    """An output that depends on nothing that is differentiated, as one whose gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, _: Tensor) -> Tensor:  # noqa: ARG004
        return out.detach()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # noqa: ARG004
        return None, None


def _without(rows: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Weighted sums of single gradients, some of which are not finite and have no weight."""
    chosen = weights > 0
    return {name: (weights[chosen] @ part[chosen].flatten(1)).view(part.shape[1:]) for name, part in rows.items()}


def _untied(found: list[tuple[Book, Record]]) -> list[tuple[Book, Record]]:
    """Records in which the gradients of a parameter that several layers share are one: their sum."""
    owners: dict[nn.Parameter, list[int]] = {}
    for place, (book, _) in enumerate(found):
        for parameter in book.layer.parameters(recurse=False):
            owners.setdefault(parameter, []).append(place)
    shared = {p: places for p, places in owners.items() if len(places) > 1 and p.requires_grad}
    if not shared:
        return found
    rows = {place: dict(found[place][1].rows()) for places in shared.values() for place in places}
    for parameter, (first, *others) in shared.items():
        mine = next(name for name, p in found[first][0].layer.named_parameters(recurse=False) if p is parameter)
        for place in others:
            theirs = next(name for name, p in found[place][0].layer.named_parameters(recurse=False) if p is parameter)
            rows[first][mine] = rows[first][mine] + rows[place].pop(theirs)
    merged = [(book, Kept(rows[place]) if place in rows else kept) for place, (book, kept) in enumerate(found)]
    return [(book, kept) for place, (book, kept) in enumerate(merged) if rows.get(place, True)]
