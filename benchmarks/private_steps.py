"""What a private step costs beside the same plain one: this engine, and each of Opacus's ways to single gradients.

    python -m benchmarks.private_steps

takes steps on ``mnist_cnn`` (batches of 256), in torch's own layout and channels last (as this project trains), and on
a small transformer (64 sentences of 64 words), one after the other in one process and on one thread, and compares
medians of processor seconds. Peak memory is that of a process of its own for each: by how much its resident set grows
over the steps. Distance is that of the clipped sum from a loop over examples. The bars: at most 1.35 times the plain
step on the first net and 1.5 times on the second, and 1.3 times its memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import RESULTS, hardware
from defenses.dp_sgd.engine import Engine
from defenses.dp_sgd.optimizer import private_optimizer
from secure_ml.randomness import seeded
from secure_ml.rows import package_version
from secure_ml.tasks.mnist_cnn import small_network
from secure_ml.tasks.text_transformer import Transformer

CLIP, NOISE = 0.1, 1.0
STEPS = {
    "mnist_cnn, batches of 256": 1.35,
    "mnist_cnn, batches of 256, channels last": 1.35,
    "transformer, batches of 64": 1.5,
}
MEMORY = 1.3
Step = Callable[[], None]


def net(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A module with one batch of inputs and targets."""
    with seeded(0, "benchmark"):
        if name.startswith("mnist_cnn"):
            module = small_network("tanh")
            for weight in module.parameters():
                if name.endswith("last") and weight.ndim == 4:
                    weight.data = weight.data.clone(memory_format=torch.channels_last)
            return module, torch.rand(256, 1, 28, 28), torch.randint(10, (256,))
        tokens = torch.randint(1, 2048, (64, 64))
        module = Transformer(2048, 64, 64, 2, 2)
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        return module, tokens, torch.randint(2, (64,))


def losses(module: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each example."""
    return nn.functional.cross_entropy(module(inputs), target, reduction="none")


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all of them."""
    return torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)


def plain(name: str) -> Step:
    """A step without privacy."""
    module, inputs, target = net(name)
    optimizer = sgd(module)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(losses(module, inputs, target).mean())
        optimizer.step()

    return step


def ours(name: str) -> Step:
    """Book-keeping, as DPSGD trains."""
    module, inputs, target = net(name)
    engine = Engine(module, CLIP)
    optimizer = private_optimizer(engine, sgd(module), **_settings(len(inputs)))

    def step() -> None:
        optimizer.zero_grad()
        found = losses(module, inputs, target)
        engine.expect(len(found))
        torch.autograd.backward(found.sum())
        engine.gather()
        optimizer.step()

    return step


def opacus(name: str, functorch: bool) -> Step:
    """Opacus's hooks, by its own rules or by functorch for all layers."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    module, inputs, target = net(name)
    wrapped = GradSampleModule(module, force_functorch=functorch)
    optimizer = DPOptimizer(sgd(module), **_settings(len(inputs)))

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(losses(wrapped, inputs, target).mean())
        optimizer.step()

    return step


def ghost(name: str) -> Step:
    """Opacus's ghost clipping: two backward passes."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    module, inputs, target = net(name)
    wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=CLIP, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(sgd(module), **_settings(len(inputs)))
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(reduction="mean"), "mean")

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(inputs), target).backward()
        optimizer.step()

    return step


WAYS: dict[str, Callable[[str], Step]] = {
    "plain": plain,
    "secure-ml, book-keeping": ours,
    "Opacus, hooks": lambda name: opacus(name, functorch=False),
    "Opacus, functorch": lambda name: opacus(name, functorch=True),
    "Opacus, ghost": ghost,
}


def _settings(size: int) -> dict[str, Any]:
    return {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": size}


def distance(name: str) -> float:
    """Relative distance of the engine's clipped sum from a loop's."""
    module, inputs, target = net(name)
    parameters, total = list(module.parameters()), [torch.zeros_like(p) for p in module.parameters()]
    for i in range(len(inputs)):
        grads = torch.autograd.grad(losses(module, inputs[i : i + 1], target[i : i + 1]).sum(), parameters)
        size = torch.cat([g.flatten() for g in grads]).norm().item()
        for part, grad in zip(total, grads, strict=True):
            part += grad * min(1.0, CLIP / (size + 1e-6))
    engine = Engine(module, CLIP)
    found = losses(module, inputs, target)
    engine.expect(len(found))
    torch.autograd.backward(found.sum())
    engine.gather()
    mine, loop = (torch.cat([t.flatten() for t in part]) for part in (engine.take(), total))
    return ((mine - loop).norm() / loop.norm()).item()


def growth(name: str, way: str) -> float:
    """Mebibytes by which the resident set of this process grows at its peak over ten steps."""
    step, before = WAYS[way](name), _resident()
    for _ in range(10):
        step()
    return (_peak() - before) / 1024


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    """Kibibytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _apart(name: str, way: str) -> float:
    command = [sys.executable, "-m", "benchmarks.private_steps", "--growth", name, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout)


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each way on one net."""
    steps = {way: make(name) for way, make in WAYS.items()}
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(rounds + 3):
        for way, step in steps.items():
            start = time.process_time()
            step()
            if turn >= 3:
                seconds[way].append(time.process_time() - start)
    middle = {way: statistics.median(found) for way, found in seconds.items()}
    room = {way: statistics.median(_apart(name, way) for _ in range(3)) for way in steps}
    return [
        {
            "net": name,
            "step": way,
            "milliseconds": round(1000 * middle[way], 2),
            "fastest": round(1000 * min(seconds[way]), 2),
            "times plain": round(middle[way] / middle["plain"], 3),
            "bar": STEPS[name] if way.startswith("secure-ml") else None,
            "peak MiB": round(room[way], 1),
            "memory, times plain": round(room[way] / room["plain"], 2),
            "distance from the loop": distance(name) if way.startswith("secure-ml") else None,
            "passed": _passed(name, way, middle, room) if way.startswith("secure-ml") else None,
        }
        for way in steps
    ]


def _passed(name: str, way: str, middle: dict[str, float], room: dict[str, float]) -> bool:
    return middle[way] <= STEPS[name] * middle["plain"] and room[way] <= MEMORY * room["plain"]


def main() -> int:
    """Measure and record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_steps")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--growth", nargs=2, metavar=("NET", "STEP"), help="only measure memory, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for known in ("Full backward hook is firing", "In CPU autocast"):
        warnings.filterwarnings("ignore", message=known)
    if options.growth:
        print(growth(*options.growth))
        return 0
    rows = [row for name in STEPS for row in measure(name, options.rounds)]
    for row in rows:
        print(row)
    versions = {package: package_version(package) for package in ("secure-ml", "torch", "opacus")}
    record = {
        "command": "python -m benchmarks.private_steps",
        "versions": versions,
        "hardware": {**hardware(), "threads": 1},
        "rows": rows,
    }
    (RESULTS / "private_steps.json").write_text(json.dumps(record, indent=1) + "\n")
    return int(any(row["passed"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
