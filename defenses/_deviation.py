"""Answers that turn a surrogate's gradient away, within a budget: what prediction poisoning computes."""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secure_ml.batch import Batch, Tree
from secure_ml.modes import evaluating

EXACT = 10
"""Classes up to which every vertex is tried where the decision is kept; there are ``2 ** (K - 1)`` of each class."""
ABOVE = 1e-3
"""How far the decision stands above what would tie with it, in a vertex before it is normalised."""


def head_products(module: nn.Module, inputs: Tree, device: torch.device) -> Tensor:
    """Inner products ``(B, K, K)`` of the gradients of each log-probability in the weights of the last layer.

    That layer being linear, they are those of the rows of ``I - 1 p'`` with the surrogate's probabilities p, times a
    number for each example that no angle depends on.
    """
    with evaluating(module), torch.no_grad():
        shares = two_columns(module(inputs)).double().softmax(1).to(device)
    rows = torch.eye(shares.shape[1], dtype=torch.double, device=device) - shares[:, None, :]
    return rows @ rows.transpose(1, 2)


def whole_products(module: nn.Module, inputs: Tree, device: torch.device) -> Tensor:
    """The same ``(B, K, K)`` for all weights, by one backward pass for each class of each example."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    products = []
    with evaluating(module), torch.enable_grad():
        for one in Batch(inputs, ()).chunks(1):
            logs = two_columns(module(one.inputs)).log_softmax(1)[0]
            rows = [_flat(torch.autograd.grad(log, weights, retain_graph=True, allow_unused=True)) for log in logs]
            jacobian = torch.stack(rows).double()
            products.append(jacobian @ jacobian.T)
    return torch.stack(products).to(device)


def deviation(shares: Tensor, bare: Tensor, products: Tensor) -> Tensor:
    """The squared distance ``(N, m)``, 0 to 4, between the directions of the gradients of answers.

    ``shares (N, m, K)`` are compared with the bare ones ``(N, K)``, by inner products ``(N, K, K)``.
    """
    towards = (products @ bare[:, :, None])[:, :, 0]
    across = (shares * towards[:, None]).sum(-1)
    lengths = ((shares @ products) * shares).sum(-1) * (bare * towards).sum(-1)[:, None]
    return 2 - 2 * across / lengths.clamp_min(1e-24).sqrt()


def poisoned(bare: Tensor, products: Tensor, budget: float, keep: bool) -> Tensor:
    """Of all vertices mixed into the bare probabilities ``(N, K)`` as far as the budget goes, those that deviate most.

    A vertex is one class for certain or, where the decision is kept, equal shares of classes among which it is.
    """
    if not keep:
        return _best(bare, torch.eye(bare.shape[1], dtype=bare.dtype, device=bare.device)[None], products, budget)[0]
    first = bare.argmax(1)
    if bare.shape[1] <= EXACT:
        vertices = _vertices(bare.shape[1]).to(bare.device)
        return _best(bare, vertices[first], products, budget)[0]
    return _grown(bare, F.one_hot(first, bare.shape[1]).to(bare.dtype), products, budget)


def climbed(answers: Tensor, bare: Tensor, products: Tensor, budget: float, keep: bool, rounds: int) -> Tensor:
    """Answers ``(N, K)`` that deviate at least as much: so many steps from vertex to vertex of what the budget allows.

    A vertex gives one class all that may move, and takes it where the deviation's slope says that it helps most.
    Where the decision is kept, a step ends short of where it would turn.
    """
    for _ in range(rounds):
        receivers = _receivers(_slope(answers, bare, products), bare, budget * (1 - 1e-6) / 2)
        if keep:
            receivers = _short(receivers, bare)
        tried = torch.cat([answers[:, None], receivers], 1)
        which = deviation(tried, bare, products).argmax(1)
        answers = tried[torch.arange(len(bare), device=bare.device), which]
    return answers


def _slope(answers: Tensor, bare: Tensor, products: Tensor) -> Tensor:
    """The gradient ``(N, K)`` of the deviation, to a positive factor for each row."""
    towards, here = ((products @ shares[:, :, None])[:, :, 0] for shares in (bare, answers))
    across, length = ((answers * part).sum(1, keepdim=True) for part in (towards, here))
    return across * here / length.clamp_min(1e-12) - towards


def _receivers(slope: Tensor, bare: Tensor, room: float) -> Tensor:
    """For each class ``(N, K, K)`` the answer that gives it ``room``, taken from the others in the order of a slope."""
    order = slope.argsort(dim=1)
    there = bare.gather(1, order)[:, None] * (
        order[:, None] != torch.arange(bare.shape[1], device=bare.device)[:, None]
    )
    taken = (room - (there.cumsum(2) - there)).clamp_min(0).minimum(there)
    lost = torch.zeros_like(taken).scatter(2, order[:, None].expand_as(taken), taken)
    return bare[:, None] - lost + torch.diag_embed(taken.sum(2))


def _short(answers: Tensor, bare: Tensor) -> Tensor:
    """Answers ``(N, m, K)``, drawn back to the bare ones as far as the decision needs it to stay first."""
    first = bare.argmax(1)[:, None, None]
    ahead = [shares.gather(2, first.expand(-1, shares.shape[1], 1)) - shares for shares in (answers, bare[:, None])]
    least = ABOVE * ahead[1]  # of each lead, so much stays
    share = ((ahead[1] - least) / (ahead[1] - ahead[0]).clamp_min(1e-300)).where(ahead[0] < least, 1.0)
    return bare[:, None] + share.amin(2, keepdim=True) * (answers - bare[:, None])


def mixed(bare: Tensor, vertices: Tensor, budget: float) -> Tensor:
    """The bare ``(N, K)`` moved towards ``vertices (N or 1, m, K)`` by an L1 distance of ``budget``, or onto them."""
    step = vertices - bare[:, None]
    length = step.abs().sum(-1, keepdim=True).clamp_min(1e-12)
    return bare[:, None] + (budget * (1 - 1e-6) / length).clamp_max(1) * step


def _best(bare: Tensor, vertices: Tensor, products: Tensor, budget: float) -> tuple[Tensor, Tensor, Tensor]:
    tried = mixed(bare, vertices, budget)
    found = deviation(tried, bare, products).max(1)
    return tried[torch.arange(len(bare), device=bare.device), found.indices], found.values, found.indices


def _grown(bare: Tensor, first: Tensor, products: Tensor, budget: float) -> Tensor:
    """The best of the answers where class after class joins the decision, each time the one that deviates most."""
    classes = bare.shape[1]
    chosen, most, best = first.bool(), torch.full_like(bare[:, 0], -1), bare
    one = torch.eye(classes, dtype=torch.bool, device=bare.device)[None]
    for _ in range(classes):
        masks = (chosen[:, None] | one).to(bare.dtype) + ABOVE * first[:, None]
        answers, values, which = _best(bare, masks / masks.sum(-1, keepdim=True), products, budget)
        best = torch.where((values > most)[:, None], answers, best)
        most = most.maximum(values)
        chosen = chosen | F.one_hot(which, classes).bool()
    return best


@cache
def _vertices(classes: int) -> Tensor:
    """For each decision ``(K, 2 ** (K - 1), K)`` the vertices of the answers that keep it."""
    masks = torch.tensor(list(product((0.0, 1.0), repeat=classes)), dtype=torch.double)
    kept = torch.stack([masks[masks[:, first] > 0] for first in range(classes)])
    kept = kept + ABOVE * torch.eye(classes, dtype=torch.double)[:, None]
    return kept / kept.sum(-1, keepdim=True)


def two_columns(outputs: Tensor) -> Tensor:
    """Logits ``(B, K)``, of one logit ``(B,)`` those of two classes."""
    return torch.stack([torch.zeros_like(outputs), outputs], 1) if outputs.ndim == 1 else outputs


def _flat(gradients: tuple[Tensor | None, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
