"""How far an adversary may go: a threat measures, projects and samples changes of inputs."""

from secure_ml.threats.balls import L0, L1, L2, Ball, Linf
from secure_ml.threats.base import Change, Joint, Threat, Walk
from secure_ml.threats.edits import Edits
from secure_ml.threats.tables import Features
from secure_ml.threats.transformations import Corruptions, Spatial, Transformations
from secure_ml.threats.waveforms import SNR

__all__ = [
    "L0",
    "L1",
    "L2",
    "SNR",
    "Ball",
    "Change",
    "Corruptions",
    "Edits",
    "Features",
    "Joint",
    "Linf",
    "Spatial",
    "Threat",
    "Transformations",
    "Walk",
]
