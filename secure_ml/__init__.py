"""Protect, attack and measure any PyTorch model: fit a task, attack the victim, print the table."""

from secure_ml.access import BlackBox, WhiteBox
from secure_ml.assess import assess
from secure_ml.assessment import Assessment
from secure_ml.attack import Attack
from secure_ml.batch import Batch, Splits
from secure_ml.defense import Defense
from secure_ml.discovery import task
from secure_ml.errors import BudgetExceeded, NotApplicable, Refused, SecureMLError, UsageError
from secure_ml.families.audit import Audit
from secure_ml.families.evasion import Evasion
from secure_ml.families.extraction import Extraction
from secure_ml.families.membership import Membership
from secure_ml.families.ownership import Ownership
from secure_ml.families.poisoning import Poisoning
from secure_ml.families.protocol import Protocol
from secure_ml.families.reconstruction import Reconstruction
from secure_ml.families.scrutiny import Scrutiny
from secure_ml.outputs import Classes, NextToken, Ranking, Values
from secure_ml.outside.endpoint import Endpoint
from secure_ml.report import evaluate
from secure_ml.rows import Row, table
from secure_ml.scores import AUC, F1, NDCG, R2, RMSE, Accuracy, HitRate, Nats
from secure_ml.surfaces import Box, SpelledTokens, Table, Tokens
from secure_ml.task import Recipe, Sample, Task, cross_entropy, next_token_loss, squared_error
from secure_ml.threats import L0, L1, L2, SNR, Corruptions, Edits, Features, Joint, Linf, Spatial
from secure_ml.training import Plan, fit
from secure_ml.victim import Claim, Victim

__all__ = [
    "AUC",
    "F1",
    "L0",
    "L1",
    "L2",
    "NDCG",
    "R2",
    "RMSE",
    "SNR",
    "Accuracy",
    "Assessment",
    "Attack",
    "Audit",
    "Batch",
    "BlackBox",
    "Box",
    "BudgetExceeded",
    "Claim",
    "Classes",
    "Corruptions",
    "Defense",
    "Edits",
    "Endpoint",
    "Evasion",
    "Extraction",
    "Features",
    "HitRate",
    "Joint",
    "Linf",
    "Membership",
    "Nats",
    "NextToken",
    "NotApplicable",
    "Ownership",
    "Plan",
    "Poisoning",
    "Protocol",
    "Ranking",
    "Recipe",
    "Reconstruction",
    "Refused",
    "Row",
    "Sample",
    "Scrutiny",
    "SecureMLError",
    "Spatial",
    "SpelledTokens",
    "Splits",
    "Table",
    "Task",
    "Tokens",
    "UsageError",
    "Values",
    "Victim",
    "WhiteBox",
    "assess",
    "cross_entropy",
    "evaluate",
    "fit",
    "next_token_loss",
    "squared_error",
    "table",
    "task",
]
