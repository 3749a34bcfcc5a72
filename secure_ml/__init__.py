"""Protect, attack and measure any PyTorch model: fit a task, attack the victim, print the table."""

from secure_ml.access import BlackBox, WhiteBox
from secure_ml.attack import Attack
from secure_ml.batch import Batch, Splits
from secure_ml.defense import Defense
from secure_ml.discovery import task
from secure_ml.errors import BudgetExceeded, NotApplicable, SecureMLError, UsageError
from secure_ml.families.evasion import Evasion
from secure_ml.families.extraction import Extraction
from secure_ml.families.membership import Membership
from secure_ml.outputs import Classes, Values
from secure_ml.report import evaluate
from secure_ml.rows import Row, table
from secure_ml.scores import RMSE, Accuracy
from secure_ml.surfaces import Box, Tokens
from secure_ml.task import Recipe, Task, cross_entropy, squared_error
from secure_ml.threats import L2, Edits, Linf
from secure_ml.training import Plan, fit
from secure_ml.victim import Claim, Victim

__all__ = [
    "L2",
    "RMSE",
    "Accuracy",
    "Attack",
    "Batch",
    "BlackBox",
    "Box",
    "BudgetExceeded",
    "Claim",
    "Classes",
    "Defense",
    "Edits",
    "Evasion",
    "Extraction",
    "Linf",
    "Membership",
    "NotApplicable",
    "Plan",
    "Recipe",
    "Row",
    "SecureMLError",
    "Splits",
    "Task",
    "Tokens",
    "UsageError",
    "Values",
    "Victim",
    "WhiteBox",
    "cross_entropy",
    "evaluate",
    "fit",
    "squared_error",
    "table",
    "task",
]
