"""Stand-ins and expectations against loops, and the worked example in the documents."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secure_ml as sm
from defenses import FeatureSqueezing
from secure_ml.adaptive import BPDA, EOT
from secure_ml.batch import Batch
from secure_ml.randomness import seeded
from tests.laws import tiny_victim, untouched

DOCUMENT = (Path(__file__).parent.parent / "docs" / "adaptive-attacks.md").read_text()


def rounded(values: Tensor) -> Tensor:
    return (values * 3).round() / 3


def model() -> nn.Module:
    with seeded(0, "model"):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the input gradient of the sum of the first class's."""
    leaf = x.clone().requires_grad_()
    outputs = module(leaf)
    return outputs.detach(), torch.autograd.grad(outputs[:, 0].sum(), leaf)[0]


def test_bpda_is_exact_forward_and_the_stand_in_backward() -> None:
    inner = model()
    outputs, found = gradient(BPDA(rounded, inner, torch.sin), X)
    assert torch.equal(outputs, inner(rounded(X)))
    at_rounded = gradient(inner, rounded(X))[1]
    assert torch.allclose(found, at_rounded * torch.cos(X))
    assert torch.equal(gradient(BPDA(rounded, inner), X)[1], at_rounded)


def test_without_bpda_there_is_no_gradient() -> None:
    leaf = X.clone().requires_grad_()
    (nothing,) = torch.autograd.grad(model()(rounded(leaf)).sum(), leaf)
    assert torch.equal(nothing, torch.zeros_like(X))


def test_bpda_leaves_tokens_alone_and_refuses_another_shape() -> None:
    seen: dict[str, Tensor] = {}

    class Reader(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            seen.update(inputs)
            return inputs["image"]

    words = torch.arange(5)
    BPDA(rounded, Reader())({"image": X, "text": words})
    assert torch.equal(seen["text"], words)
    assert torch.equal(seen["image"], rounded(X))
    with pytest.raises(sm.UsageError, match="both must return one shape"):
        BPDA(rounded, model(), lambda values: values[:, :2])(X)


class Jittered(nn.Module):
    """Adds noise of the global stream to what it is shown."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.3 * torch.randn_like(x))


def test_eot_is_the_mean_of_probabilities_and_leaves_the_stream() -> None:
    jittered = Jittered(model())
    eot = EOT(jittered, samples=7, seed=3)
    with untouched(eot):
        outputs, found = gradient(eot, X)
    leaf, passes = X.clone().requires_grad_(), []
    for i in range(7):
        with seeded(3, "eot", i):
            passes.append(jittered(leaf).softmax(1))
    mean = torch.stack(passes).mean(0).log()
    assert torch.allclose(outputs, mean, atol=1e-6)
    assert torch.allclose(found, torch.autograd.grad(mean[:, 0].sum(), leaf)[0], atol=1e-6)
    torch.rand(5)
    assert torch.equal(eot(X), outputs)
    assert not torch.equal(EOT(jittered, samples=7, seed=4)(X), outputs)


def test_eot_of_one_logit_and_of_what_is_not_random() -> None:
    with seeded(0, "model"):
        one = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert torch.allclose(EOT(one, samples=3)(X), one(X), atol=1e-6)
    assert torch.allclose(EOT(model(), samples=3)(X), model()(X).log_softmax(1), atol=1e-6)
    with pytest.raises(sm.UsageError, match="at least 1 sample"):
        EOT(one, samples=0)


def test_access_runs_them_like_any_module() -> None:
    victim = tiny_victim("digits_cnn", FeatureSqueezing.tiny())
    batch, surface = victim.splits.test.take(slice(0, 4)), victim.task.surfaces[0]
    inner, squeeze = victim.module.inner, victim.module.transform
    naive = sm.WhiteBox(victim.task, victim.module).ascend(batch, surface)
    assert torch.equal(naive.gradient, torch.zeros_like(batch.inputs))
    for module in (BPDA(squeeze, inner), EOT(BPDA(squeeze, inner), samples=2)):
        with untouched(module.eval()):
            seen = sm.WhiteBox(victim.task, module).ascend(batch, surface)
        assert torch.allclose(seen.losses, naive.losses, atol=1e-5)
        squeezed = Batch(squeeze(batch.inputs), batch.target)
        expected = sm.WhiteBox(victim.task, inner).ascend(squeezed, surface).gradient
        assert torch.allclose(seen.gradient, expected, atol=1e-5)


@pytest.mark.slow
def test_the_worked_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The naive attack looks robust, the adaptive one leaves what it leaves of the bare model; figures as printed."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out
    bare, naive, identity, adaptive = (float(line.rpartition(" ")[2]) for line in printed.splitlines())
    assert naive > 0.9
    assert bare < identity < naive
    assert adaptive < bare + 0.03
    (shown,) = re.findall(r"It prints.*?```\n(.*?)```", DOCUMENT, re.DOTALL)
    for line, documented in zip(printed.splitlines(), shown.splitlines(), strict=True):
        name, _, value = line.rpartition(" ")
        assert documented.rpartition(" ")[0] == name
        assert abs(float(documented.rpartition(" ")[2]) - float(value)) < 0.03
