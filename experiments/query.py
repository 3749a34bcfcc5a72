"""Ask a server with encrypted inputs: the keys are made and kept here."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from defenses.homomorphic.circuit import rows_of
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.release import released
from defenses.homomorphic.service.keyring import open_keyring
from defenses.homomorphic.service.remote import Remote
from experiments._catalog import ask, set_data_directory, task_of
from secure_ml.errors import UsageError, require


@dataclass(frozen=True)
class Query:
    """Ask a server with encrypted inputs, and print what was decided and how long that took.

    Only ciphertexts and public keys leave this computer. Inputs outside the range for which the server's program was
    calibrated are refused here, since their answers could wrap around.
    """

    url: tyro.conf.Positional[str]
    """Of the server: http://HOST:PORT, or https://HOST:PORT."""
    input: Path | None = None
    """Inputs in a .npy, .npz or .csv file: one, or several along the first dimension."""
    example: int | None = None
    """Instead of a file: the number of an example of the task's test split."""
    task: str | None = None
    """The task of that example; the one that the server says it serves unless given."""
    keys: Path | None = None
    """Folder of the keys; runs/keys/CONTRACT unless given. They are made on first use, the secret one with mode 600."""
    values: bool = False
    """Print the answers as well, rounded: who publishes them in full precision gives the key away."""
    decimals: int | None = None
    """Of these values; as many as stop the known exact attack unless given, which is no proof that they are safe."""
    ca: Path | None = None
    """File of certificates to trust, for a server whose own is not publicly signed."""
    data_dir: Path | None = None
    """Where data sets lie; SECURE_ML_DATA or ~/.cache/secure_ml unless given."""


def main(argv: Sequence[str]) -> int:
    """Fetch the contract, encrypt, ask, decrypt, print."""
    options = ask(Query, argv, "secure-ml query")
    set_data_directory(options.data_dir)
    require((options.input is None) != (options.example is None), "give either --input FILE or --example NUMBER")
    with closing(Remote(options.url, trusted=options.ca)) as remote:
        return _asked(options, remote)


def _asked(options: Query, remote: Remote) -> int:
    contract, about = remote.about()
    rows, target = _inputs(options, contract, about)
    contract.check_inputs(rows)
    client = open_keyring(options.keys or Path("runs") / "keys" / contract.id, contract)
    pieces, seconds = [], []
    for piece in rows.split(contract.batch):
        start = time.perf_counter()
        pieces.append(remote.ask(client, piece))
        seconds.append(time.perf_counter() - start)
    answers = released(torch.cat(pieces), contract.parameters, options.decimals)
    for i, answer in enumerate(answers):
        print(_shown(answer, about, options.values, None if target is None else target[i]))
    print(
        f"{len(rows)} queries, {sum(seconds):.3f} s ({sorted(seconds)[len(seconds) // 2]:.3f} s a request), "
        f"{remote.sent:,} bytes up, {remote.received:,} down"
    )
    return 0


def _inputs(options: Query, contract: Contract, about: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Rows ``(B, in)``, and what is right where that is known."""
    if options.example is None:
        assert options.input is not None
        return read_inputs(options.input, contract.inputs), None
    name = options.task or about.get("task")
    if not name:
        raise UsageError("the server does not say which task it serves: give --task")
    test = task_of(str(name)).draw(int(about.get("seed", 0))).test
    if not 0 <= options.example < len(test):
        raise UsageError(f"there is no test example {options.example}; there are 0 to {len(test) - 1}")
    one = test.take(slice(options.example, options.example + 1))
    if isinstance(one.inputs, Tensor) and not one.inputs.is_floating_point():
        raise UsageError(
            f"{name} takes tokens, and the server's program starts behind their vectors: look them up in the model's "
            "table (defenses.homomorphic.lookup) and give the vectors with --input"
        )
    return rows_of(one.inputs), one.target if isinstance(one.target, Tensor) else None


def read_inputs(path: Path, size: int) -> Tensor:
    """The numbers ``(B, size)`` of a .npy, .npz (its only array) or .csv file; raises `UsageError` for others."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                require(len(arrays.files) == 1, f"{path} holds {len(arrays.files)} arrays; expected one")
                values = arrays[arrays.files[0]]
        elif path.suffix == ".csv":
            values = np.loadtxt(path, delimiter=",", ndmin=2)
        else:
            raise UsageError(f"{path} is of no known kind; expected .npy, .npz or .csv")
        values = np.asarray(values, dtype=np.float64)
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read as numbers: {error}") from None
    if values.size == 0 or values.size % size or (values.ndim > 1 and values.shape[0] * size < values.size):
        require(values.size == size, f"an input has {size} numbers here; {path} holds an array of shape {values.shape}")
    return torch.from_numpy(values.reshape(-1, size))


def _shown(answer: Tensor, about: Mapping[str, Any], values: bool, target: Tensor | None) -> str:
    flat = answer.flatten()
    several = len(flat) > 1 and about.get("output", "Classes") == "Classes"
    if several:
        decision = f"class {int(flat.argmax())}"
    elif about.get("output") == "Classes":
        decision = f"class {int(flat[0] > 0)}"
    else:
        return f"value {' '.join(f'{v:g}' for v in flat.tolist())}" + ("" if target is None else f" (true: {target})")
    right = "" if target is None else f" (true: {target.item():g})"
    return decision + right + (f" {flat.tolist()}" if values else "")
