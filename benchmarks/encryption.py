"""What an encrypted query costs: the engines beside TenSEAL's own products, on the same nets, on one thread.

    python -m benchmarks.encryption RUN --data-dir DATA

trains the nets by the shared loop, or takes them from RUN; then measures the latency of one query (the best and the
median of several, in seconds of processor time of the server), the whole test set in batches, accuracy and the
largest error against the plaintext twin, and the bytes that travel. Every measurement is kept in RUN: a killed call
goes on. Rows, with the bars they are held to, go to ``benchmarks/results/encryption.json``; 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks._encrypted_nets import FRIENDLY, NETS, trained
from benchmarks.record import RESULTS, hardware
from defenses.homomorphic.circuit import Affine, rows_of
from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import Engine
from defenses.homomorphic.levels import make_context
from defenses.homomorphic.parameters import Parameters
from defenses.homomorphic.program import Program
from defenses.homomorphic.server import Server
from defenses.homomorphic.wire import Files, sealapi, tenseal
from experiments._catalog import set_data_directory
from secure_ml.batch import Batch
from secure_ml.rows import package_version

LIBRARY = "the library's rotation key bytes"
FOLD = 8
"""Outputs of the first map that `CKKSTensor.mm` computes; its time for the others is taken to be the same."""


@dataclass(frozen=True)
class Case:
    """One program, what is measured of it, and what it must reach."""

    net: str
    engine: Engine
    degree: int | None
    precision: float
    queries: int
    """The test images that are encrypted; all of them where an engine answers thousands at a time."""
    compact: bool = False

    @property
    def name(self) -> str:
        """The file that keeps it."""
        size = "any" if self.degree is None else str(self.degree)
        return f"{self.net} {self.engine} {size} {self.precision:g}{' compact' if self.compact else ''}".replace(
            " ", "-"
        )


CASES = (
    Case("tutorial CNN", "latency", 8192, 1e-2, 24),
    Case("tutorial CNN", "latency", 8192, 1e-2, 24, compact=True),
    Case("tutorial CNN", "reference", 8192, 1e9, 4),
    Case("tutorial CNN", "latency", 16384, 1e-5, 12),
    Case("tutorial CNN", "latency", 16384, 1e-5, 12, compact=True),
    Case("tutorial CNN", "reference", 16384, 1e9, 3),
    Case("dense", "throughput", 8192, 1e-3, 10_000),
    Case("tutorial CNN", "throughput", 8192, 1e-2, 10_000),
    Case("wide CNN", "latency", None, 1e-2, 8),
    Case("wide CNN", "throughput", 8192, 1e-2, 10_000),
    Case("wide CNN, clothes", "latency", None, 1e-2, 8),
    Case("wide CNN, clothes", "throughput", 8192, 1e-2, 10_000),
)


def main() -> int:
    """Measure what is not there yet, print, record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encryption")
    parser.add_argument("run", type=Path, help="folder that keeps nets and measurements")
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    set_data_directory(options.data_dir)
    torch.set_num_threads(1)
    rows = [_kept(options.run, case.name, partial(measure, case, options.run)) for case in CASES]
    rows += [_kept(options.run, f"accuracy of {name}", partial(accuracy, name, options.run)) for name in NETS]
    rows.append(_kept(options.run, "CKKSTensor.mm", partial(tensor_product, "dense", options.run)))
    bars = judged({row["name"]: row for row in rows})
    for row in (*rows, *bars):
        print(json.dumps(row), flush=True)
    record = {
        "command": "python -m benchmarks.encryption RUN --data-dir DATA",
        "versions": {name: package_version(name) for name in ("secure-ml", "torch", "tenseal")},
        "hardware": {**hardware(), "threads": 1},
        "rows": rows,
        "bars": bars,
    }
    (RESULTS / "encryption.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(bar["passed"] for bar in bars))


def _kept(run: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A measurement, from the run if it is there."""
    path = run / "rows" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"name": name, **make()}
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(row))
        draft.replace(path)
        print(json.dumps(row), flush=True)
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def measure(case: Case, run: Path) -> dict[str, Any]:
    """Keys, bytes, the server's seconds and the errors of one program."""
    victim = trained(case.net, run)
    defense = replace(FRIENDLY, engine=case.engine, degree=case.degree, precision=case.precision, compact=case.compact)
    start = time.process_time()
    program = defense.program(victim)
    compiled = time.process_time() - start
    client = Client(program.contract)
    keys = client.public_bytes()
    start = time.process_time()
    server = Server.from_bytes(program.to_bytes(), keys)
    started = time.process_time() - start
    test = victim.splits.test.take(slice(0, case.queries))
    return {
        **asdict(case),
        "parameters": str(program.contract.parameters),
        "log2 Q": program.contract.parameters.log_q,
        "expected error": program.expected_error,
        "compiler seconds": round(compiled, 2),
        "server start seconds": round(started, 2),
        "key bytes": len(keys),
        LIBRARY: library_keys(program.contract.parameters),
        **_answers(program, client, server, test),
    }


def library_keys(parameters: Parameters) -> int:
    """Bytes of the Galois keys that SEAL makes unless told which are needed, as it saves them."""
    generator, keys = sealapi().KeyGenerator(make_context(parameters)), sealapi().GaloisKeys()
    generator.create_galois_keys(keys)
    return len(Files().to_bytes(keys))


def _answers(program: Program, client: Client, server: Server, test: Batch) -> dict[str, Any]:
    """What the server needs for each query, and what comes back."""
    rows, labels = rows_of(test.inputs), test.target
    assert isinstance(labels, Tensor)
    seconds, client_seconds, answers, up, down = [], 0.0, [], 0, 0
    for piece in rows.split(program.contract.batch):
        start = time.process_time()
        query = client.encrypt(piece)
        middle = time.process_time()
        answer = server.answer(query)
        end = time.process_time()
        seconds.append((end - middle) / len(piece))
        answers.append(client.decrypt(answer))
        client_seconds += middle - start + time.process_time() - end
        up, down = max(up, len(query)), max(down, len(answer))
    found, twin = torch.cat(answers), program.circuit.run(rows)
    best = twin.topk(2).values
    error = float((found - twin).abs().max())
    return {
        "server seconds a query, best": round(min(seconds), 6),
        "server seconds a query, median": round(median(seconds), 6),
        "server seconds a query, mean": round(
            sum(s * len(p) for s, p in zip(seconds, answers, strict=True)) / len(found), 6
        ),
        "client seconds a query": round(client_seconds / len(rows), 6),
        "bytes up": up,
        "bytes down": down,
        "largest error": error,
        "largest logit": float(twin.abs().max()),
        "equal decisions": int((found.argmax(1) == twin.argmax(1)).sum()),
        "margins below twice the error": int((best[:, 0] - best[:, 1] < 2 * error).sum()),
        "encrypted accuracy": float((found.argmax(1) == labels).double().mean()),
        "plain accuracy": float((twin.argmax(1) == labels).double().mean()),
    }


def accuracy(name: str, run: Path) -> dict[str, Any]:
    """Of the module in the clear on the whole test set, and what it was trained with."""
    victim = trained(name, run)
    score = victim.score()
    return {
        "net": name,
        "trained": repr(victim.defenses),
        "accuracy": score.value,
        "low": score.low,
        "high": score.high,
    }


def tensor_product(name: str, run: Path) -> dict[str, Any]:
    """`CKKSTensor.mm` on the first map of a net and a full batch, for some of its outputs."""
    victim = trained(name, run)
    program = replace(FRIENDLY, degree=8192).program(victim)
    parameters, step = program.contract.parameters, program.circuit.maps[0]
    rows = rows_of(victim.splits.test.take(slice(0, parameters.slots)).inputs)
    ts = tenseal()
    context = ts.context(ts.SCHEME_TYPE.CKKS, parameters.degree, coeff_mod_bit_sizes=parameters.bits, n_threads=1)
    context.global_scale = parameters.scale
    inputs = ts.ckks_tensor(
        context, ts.plain_tensor(rows.flatten().tolist(), [len(rows), 1, rows.shape[1]]), batch=True
    )
    part = Affine(step.matrix[:FOLD], step.bias[:FOLD])
    start = time.process_time()
    inputs.mm(ts.plain_tensor(part.matrix.T.flatten().tolist(), [rows.shape[1], FOLD]))
    seconds = time.process_time() - start
    outputs = len(step.bias)
    return {
        "net": name,
        "parameters": str(parameters),
        "outputs measured": FOLD,
        "outputs": outputs,
        "seconds measured": round(seconds, 2),
        "server seconds a query, first map, extrapolated": round(seconds * outputs / FOLD / len(rows), 6),
    }


def judged(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bar with what was found."""
    best, found = "server seconds a query, best", {case: rows[case.name] for case in CASES}
    bars: list[tuple[str, float, float, bool]] = []
    for degree, error in ((8192, 1e-2), (16384, 1e-5)):
        fast, small, slow = (
            next(row for case, row in found.items() if (case.net, case.engine, case.degree, case.compact) == key)
            for key in (
                ("tutorial CNN", "latency", degree, False),
                ("tutorial CNN", "latency", degree, True),
                ("tutorial CNN", "reference", degree, False),
            )
        )
        bars += [
            (f"N={degree}: times faster than TenSEAL's products", slow[best] / fast[best], 10, True),
            (f"N={degree}: largest error", fast["largest error"], error, False),
            (f"N={degree}: compact keys, share of the library's", small["key bytes"] / small[LIBRARY], 0.5, False),
            (f"N={degree}: compact keys, times the latency", small[best] / fast[best], 2, False),
        ]
    many = rows[Case("dense", "throughput", 8192, 1e-3, 10_000).name]
    wide = rows[Case("wide CNN", "throughput", 8192, 1e-2, 10_000).name]
    clothes = rows[Case("wide CNN, clothes", "throughput", 8192, 1e-2, 10_000).name]
    mean = "server seconds a query, mean"
    tensor = rows["CKKSTensor.mm"]["server seconds a query, first map, extrapolated"]
    twin = rows["accuracy of wide CNN, clothes, ReLU"]["accuracy"]
    bars += [
        ("throughput: ms of the server a query", 1000 * many[mean], 3, False),
        ("throughput: accuracy", many["encrypted accuracy"], 0.98, True),
        ("throughput: decisions equal to the twin's", many["equal decisions"], 10_000, True),
        ("throughput: times faster than CKKSTensor.mm", tensor / many[mean], 4, True),
        ("MNIST, encrypted accuracy", wide["encrypted accuracy"], 0.988, True),
        ("Fashion-MNIST, points below the ReLU twin", 100 * (twin - clothes["encrypted accuracy"]), 1.5, False),
    ]
    return [
        {"bar": bar, "value": value, "wanted": wanted, "passed": value >= wanted if least else value <= wanted}
        for bar, value, wanted, least in bars
    ]


if __name__ == "__main__":
    sys.exit(main())
