"""Draw the plots of the documents from the records of runs on MNIST.

    python -m benchmarks.plots

rewrites ``docs/{robustness,privacy,extraction,encryption}.png``.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.record import RESULTS
from experiments._curves import Curve, draw_curves
from experiments._encryption_plots import draw_costs
from experiments._fidelity import draw_fidelity, offers
from experiments._privacy_plots import draw_privacy
from experiments.encryption import settings
from experiments.privacy import points
from secure_ml.rows import Row, row_from

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """All four."""
    robust = recorded("robustness-mnist_cnn")
    draw_curves(curves_of(robust), DOCS / "robustness.png", f"{robust[0].task}, {robust[0].n} test images attacked")
    private = recorded("privacy-mnist_cnn")
    draw_privacy(points(private), DOCS / "privacy.png", f"{private[0].task} under differential privacy")
    copies = recorded("extraction-curves-mnist_cnn")
    draw_fidelity(offers(copies), DOCS / "extraction.png", f"copies of {copies[0].task}")
    encrypted = recorded("encryption-mnist_mlp")
    draw_costs(settings(encrypted), DOCS / "encryption.png", "encrypted mnist_mlp")


def recorded(name: str) -> list[Row]:
    """The rows of a record."""
    return [row_from(row) for row in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]]


def curves_of(rows: list[Row]) -> list[Curve]:
    """The curves of ``secure-ml robustness``, from its pooled rows: each names its radius last."""
    found: dict[tuple[str, str], Curve] = {}
    for row in rows:
        kind, _, threat = row.measure.partition(" under ")
        if row.unit == "verdict" or not threat:
            continue
        attack = "certified" if kind.startswith("certified") else "worst case" if " | " in row.attack else row.attack
        curve = found.setdefault((row.defenses, attack), Curve(row.defenses, attack, [], []))
        curve.radii.append(float(threat.partition("(")[2].rstrip(")")))
        curve.rows.append(row)
    return list(found.values())


if __name__ == "__main__":
    main()
