"""What each risk is called elsewhere: MITRE ATLAS (https://atlas.mitre.org) and NIST AI 100-2 E2025."""

from __future__ import annotations

from dataclasses import dataclass

NIST = "https://doi.org/10.6028/NIST.AI.100-2e2025"


@dataclass(frozen=True)
class Name:
    """What a catalogue calls a risk, under which identifier, and where."""

    catalogue: str
    identifier: str
    name: str

    @property
    def link(self) -> str:
        """The page of the technique, or the document that defines it."""
        return f"https://atlas.mitre.org/techniques/{self.identifier}" if self.catalogue == "ATLAS" else NIST


@dataclass(frozen=True)
class Risk:
    """A family of attacks as a reader meets it."""

    title: str
    question: str
    names: tuple[Name, ...] = ()


def _atlas(identifier: str, name: str) -> Name:
    return Name("ATLAS", f"AML.{identifier}", name)


def _nist(identifier: str, name: str) -> Name:
    return Name("NIST", f"NISTAML.{identifier}", name)


UTILITY = "utility"
OTHER = "other"
RISKS = {
    UTILITY: Risk("Usefulness", "What does the model score when nobody attacks it?"),
    "evasion": Risk(
        "Evasion",
        "What does it score when inputs are changed to mislead it?",
        (
            _atlas("T0015", "Evade AI Model"),
            _atlas("T0043", "Craft Adversarial Data"),
            _nist("022", "Evasion"),
            _nist("025", "Black-box Evasion"),
        ),
    ),
    "certification": Risk(
        "Certified robustness", "What does it provably score, whatever the change?", (_nist("022", "Evasion"),)
    ),
    "membership": Risk(
        "Membership inference",
        "Can it be told whose data it was trained on?",
        (_atlas("T0024.000", "Infer Training Data Membership"), _nist("033", "Membership Inference")),
    ),
    "blind membership": Risk("Members without the model", "Could members be told by their inputs alone?"),
    "audit": Risk(
        "Privacy audit",
        "How much of a single example shows, at least?",
        (_atlas("T0024.000", "Infer Training Data Membership"), _nist("033", "Membership Inference")),
    ),
    "reconstruction": Risk(
        "Reconstruction",
        "Can training data be got back out of it?",
        (_atlas("T0024.001", "Invert AI Model"), _nist("032", "Data Reconstruction")),
    ),
    "extraction": Risk(
        "Model extraction",
        "How good a copy do its answers buy?",
        (_atlas("T0024.002", "Extract AI Model"), _nist("031", "Model Extraction")),
    ),
    "poisoning": Risk(
        "Poisoning",
        "What can be planted through its training data?",
        (_atlas("T0020", "Poison Training Data"), _nist("013", "Data Poisoning"), _nist("023", "Backdoor Poisoning")),
    ),
    "ownership": Risk(
        "Ownership",
        "Can a stolen copy be told from an independent model?",
        (_atlas("T0024.002", "Extract AI Model"), _nist("031", "Model Extraction")),
    ),
    "protocol": Risk("Protocol", "Does what travels between client and server give a secret away?"),
    OTHER: Risk("Other measurements", "What else was measured?"),
}
"""By family. The protocol's risk has no name of its own in either catalogue."""
