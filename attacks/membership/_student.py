"""What shadows say about each example, with variances that lean on those of all examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.membership._gaussian import fit_normals


@dataclass(frozen=True)
class Students:
    """For each example and each of ``Q`` numbers a Student t distribution: where the next value will lie."""

    mean: Tensor
    """``(B, Q)``."""
    variance: Tensor
    """Square of the scale, ``(B, Q)``."""
    freedom: Tensor
    """Degrees of freedom, ``(B, 1)``."""

    def log_density(self, values: Tensor) -> Tensor:
        """The log-density ``(B, Q)`` of values ``(B, Q)``."""
        density: Tensor = torch.distributions.StudentT(
            self.freedom.expand_as(values), self.mean, self.variance.sqrt()
        ).log_prob(values)
        return density

    def log_tail(self, values: Tensor) -> Tensor:
        """``-log Pr[T > values]``, ``(B, Q)``; high for members."""
        from scipy.stats import t

        standard = ((values - self.mean) / self.variance.sqrt()).numpy()
        return -torch.from_numpy(t.logsf(standard, self.freedom.numpy()))


def fit_students(values: Tensor, chosen: Tensor) -> Students:
    """The predictive distribution of each example over the shadows ``chosen`` ``(S, B)`` of values ``(S, B, Q)``.

    Its variance is the mean of the pooled one, which counts as `PRIOR` shadows, and its own: the posterior under an
    inverse-gamma prior (Smyth 2004, https://doi.org/10.2202/1544-6115.1027).
    """
    pooled = fit_normals(values, chosen, fixed=True)
    weight = chosen[..., None].to(values)
    count = weight.sum(0)
    squares = (weight * (values - pooled.mean)).square().sum(0)
    freedom = PRIOR + count - 1
    variance = (PRIOR * pooled.covariance.diagonal(dim1=1, dim2=2) + squares) / freedom
    return Students(pooled.mean, variance * (1 + 1 / count), freedom)


PRIOR = 4.0
"""Shadows that the variance of all examples counts for."""
