"""Normal distributions of what shadows say about each example, and two likelihood ratios of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normals:
    """For each example a normal distribution of ``Q`` numbers."""

    mean: Tensor
    """``(B, Q)``."""
    covariance: Tensor
    """``(B, Q, Q)``, or ``(1, Q, Q)`` where one holds for all examples."""

    def only(self, q: int) -> Normals:
        """The distribution of the q-th number alone."""
        return Normals(self.mean[:, q : q + 1], self.covariance[:, q : q + 1, q : q + 1])

    def standard(self, values: Tensor) -> Tensor:
        """Values ``(B, Q)`` as uncorrelated numbers of mean 0 and deviation 1."""
        factor = torch.linalg.cholesky(self.covariance)
        shift = (values - self.mean)[..., None]
        white: Tensor = torch.linalg.solve_triangular(factor.expand(len(values), -1, -1), shift, upper=False)[..., 0]
        return white

    def log_density(self, values: Tensor) -> Tensor:
        """The log-density ``(B,)`` of values ``(B, Q)``, without the constant that all normals share."""
        scale: Tensor = torch.linalg.cholesky(self.covariance).diagonal(dim1=1, dim2=2).log().sum(1)
        return -self.standard(values).square().sum(1) / 2 - scale


def fit_normals(values: Tensor, chosen: Tensor, *, fixed: bool) -> Normals:
    """The normal of each example over the shadows ``chosen`` ``(S, B)`` of values ``(S, B, Q)``.

    ``fixed``: the covariance around each example's own mean, pooled over all examples. Else each example has variances
    of its own, under the pooled correlations, which an example's few shadows could not tell. Where no example
    has two shadows, the spread of the means takes the place of the pooled covariance.
    """
    weight = chosen[..., None].to(values)
    count = weight.sum(0)
    mean = (weight * values).sum(0) / count
    rest = weight * (values - mean)
    free = (count - 1).clamp(min=0)
    products = torch.einsum("sbp,sbq->bpq", rest, rest)
    pooled = products.sum(0) / free.sum() if free.sum() else (mean - mean.mean(0)).T @ (mean - mean.mean(0)) / len(mean)
    pooled = pooled + FLOOR * torch.eye(values.shape[2]).to(values)
    if fixed:
        return Normals(mean, pooled[None])
    spread = pooled.diagonal().sqrt()
    own = (products.diagonal(dim1=1, dim2=2) / free.clamp(min=1) + FLOOR).sqrt()
    correlation = (1 - SHRINK) * pooled / (spread[:, None] * spread)
    correlation.fill_diagonal_(1.0)
    return Normals(mean, correlation * own[:, :, None] * own[:, None, :])


def log_ratio(values: Tensor, inside: Normals, outside: Normals) -> Tensor:
    """``log N_in - log N_out`` ``(B,)`` of values ``(B, Q)``: LiRA's score with both kinds of shadows."""
    return inside.log_density(values) - outside.log_density(values)


def log_tail(values: Tensor, outside: Normals) -> Tensor:
    """``-log Pr[N_out > values]``, ``(B,)``, for values ``(B, 1)``: LiRA's one-sided score, high for members.

    Of several values, that of the sum that tells best a shift of all of them; the logarithm keeps apart what the
    probability rounds to 0.
    """
    ones = torch.ones_like(outside.mean)
    whitened = Normals(torch.zeros_like(ones), outside.covariance).standard(ones)
    along = (outside.standard(values) * whitened).sum(1) / whitened.norm(dim=1)
    tail: Tensor = torch.special.log_ndtr(-along)
    return -tail


FLOOR = 1e-6
"""Added to variances."""
SHRINK = 0.01
"""By which pooled correlations are weakened, so that no covariance is singular."""
