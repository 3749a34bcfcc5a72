"""An attribute of a person from the others, the true label and the served model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from secure_ml.errors import require, unknown
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.outputs import Reveal, Values, check_reveal
from secure_ml.secrets.attribute import OneAttribute, Records, without_access

Prior = Literal["imputed", "marginal"]


@dataclass(frozen=True, kw_only=True)
class AttributeInference(Reconstruction[Records]):
    """The value under which the true answer is likeliest (Fredrikson et al. 2014; Yeom et al. 2018, section 5).

    https://arxiv.org/abs/1709.01604. Asks the served model about each of ``(B, d)`` rows with every value that the
    hidden attribute may have, and weighs the likelihood of the true target, exp(-loss), by a prior learned from
    auxiliary rows. Judged, as Jayaraman and Evans ask (2022, https://arxiv.org/abs/2209.01292), against imputation from
    the other attributes and the target without any model, on members and on others: only what exceeds imputation is
    leakage, and only what exceeds it more for members is leakage about the training set. Raises `UsageError` for a
    column that does not exist, `NotApplicable` for inputs that are no rows of a table.

    Differs from the papers: the prior of each row is imputed from its other attributes (``prior='marginal'`` is
    Fredrikson's); the loss of values is taken over twice its mean on auxiliary rows, a Gaussian likelihood; of a number
    with more than ten values it is asked in which half they lie.
    """

    column: int | None = None
    """The attribute's column, counted from 0; the category of the fewest values (or column 0) unless given."""
    prior: Prior = "imputed"
    """What is known beforehand: how frequent each value is, or what the other attributes say."""
    reveal: Reveal = "probabilities"
    """How much of each answer the adversary sees."""

    def __post_init__(self) -> None:
        check_reveal(self.reveal)
        require(self.column is None or self.column >= 0, f"columns are counted from 0; given {self.column}")
        if self.prior not in get_args(Prior):
            raise unknown("prior of AttributeInference", self.prior, get_args(Prior))

    @property
    def secret(self) -> OneAttribute:
        """One attribute of members and others."""
        return OneAttribute(column=self.column, reveal=self.reveal)

    def recover(self, access: Records, rng: torch.Generator) -> Tensor:
        """Log-posterior of each kind, ``(B, kinds)``."""
        attribute, rows = access.attribute, access.batch.inputs
        assert isinstance(rows, Tensor)
        assert isinstance(access.aux.inputs, Tensor)
        if self.prior == "imputed":
            prior = without_access(attribute, access.aux, rows, None)
        else:
            counts = torch.bincount(attribute.of(access.aux.inputs), minlength=attribute.count)
            prior = (counts / counts.sum()).expand(len(rows), -1)
        scale = 2 * access.loss(access.aux).mean().clamp(min=1e-12) if isinstance(access.task.output, Values) else 1.0
        likelihood = torch.stack([-access.losses(option) / scale for option in attribute.options], 1)
        of_kind = [
            likelihood[:, attribute.kinds == kind].logsumexp(1) - (attribute.kinds == kind).sum().log()
            for kind in range(attribute.count)
        ]
        return torch.stack(of_kind, 1) + prior.clamp(min=1e-4).log()
