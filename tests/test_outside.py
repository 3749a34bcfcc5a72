"""Models and data from outside: whatever form they come in, they answer as they did where they came from."""

import json
import pickle
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import secure_ml as sm
from secure_ml.access import WhiteBox
from secure_ml.errors import BudgetExceeded, NotApplicable, UsageError
from secure_ml.outside.adapted import Manner, Scale, call_of, read
from secure_ml.outside.boxes import boxed, normalised
from secure_ml.outside.endpoint import Endpoint, Remote, Unanswered
from secure_ml.outside.estimator import Estimator
from secure_ml.outside.examples import as_classes
from secure_ml.outside.examples import read as read_data
from secure_ml.outside.files import open_file
from secure_ml.outside.kinds import kind_of, per_example
from secure_ml.outside.words import worded
from secure_ml.surfaces import Box, Tokens

X = torch.linspace(-1, 2, 24).reshape(6, 4)


def net(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()


class Rows(Dataset[Any]):
    """Examples of any form."""

    def __init__(self, make: Callable[[int], Any], n: int = 6) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


# Data


@pytest.mark.parametrize(
    "data",
    [
        (X, torch.arange(6)),
        [X.numpy(), np.arange(6)],
        TensorDataset(X, torch.arange(6)),
        DataLoader(TensorDataset(X, torch.arange(6)), batch_size=2, shuffle=True),
        Rows(lambda i: (X[i], i)),
        Rows(lambda i: (X[i].numpy(), torch.tensor(i))),
        Rows(lambda i: {"x": X[i], "text": "left out", "label": i}),
        [(X[i], i) for i in range(6)],
        sm.Batch(X, torch.arange(6)),
    ],
    ids="pair arrays tensors loader tuples numpy dictionaries list batch".split(),
)
def test_every_form_of_data_is_the_same(data: object) -> None:
    inputs, target = read_data(data, "test", [])
    assert isinstance(inputs, Tensor)
    assert torch.equal(inputs.float(), X)
    assert torch.equal(torch.as_tensor(target), torch.arange(6))


def test_dictionaries_and_tuples_stay_trees() -> None:
    inputs, _ = read_data(Rows(lambda i: {"ids": [1, 2, i], "mask": [1, 1, 0], "labels": i}), "test", [])
    assert isinstance(inputs, dict)
    assert inputs["ids"].shape == (6, 3)  # type: ignore[union-attr]
    several, target = read_data(TensorDataset(X, X + 1, torch.arange(6)), "test", [])
    assert isinstance(several, tuple)
    assert torch.equal(several[1], X + 1)  # type: ignore[arg-type]
    assert target.tolist() == list(range(6))


def test_a_large_part_is_read_in_part_and_said() -> None:
    found: list[Any] = []
    inputs, _ = read_data(Rows(lambda i: (X[i % 6], i), n=100), "train", found, most=16 * 10)
    assert len(inputs) == 10
    assert found[0].verdict == "WARN"
    assert "10 of 100 examples of train" in found[0].evidence


def test_random_augmentation_is_seen() -> None:
    found: list[Any] = []
    read_data(Rows(lambda i: (torch.rand(4), i)), "train", found)
    assert "answers differently each time" in found[0].evidence


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[0], 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Stream(), "train is a Stream; expected a map-style dataset"),
        (7, "train is a int; expected"),
        (Rows(lambda i: X[i]), "holds examples of type Tensor; expected"),
        (Rows(lambda i: {"x": X[i]}), "expected a key called labels"),
        (Rows(lambda i: (torch.zeros(i + 1), 0)), "pad texts to one length"),
        (Rows(lambda i: (object(), 0)), "turn images into tensors"),
        ((np.array([["a"], ["b"]]), np.arange(2)), "no numbers: encode them"),
        (Rows(lambda i: (X[i], i), n=0), "train is empty"),
    ],
    ids="stream number bare untargeted ragged objects words empty".split(),
)
def test_data_that_cannot_be_read(data: object, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_data(data, "train", [])


def test_labels_become_places() -> None:
    (a, b), said = as_classes([np.array(["dog", "cat"]), np.array(["eel", "cat"])], None)
    assert a.tolist() == [1, 0]
    assert b.tolist() == [2, 0]
    assert "0 = cat, 1 = dog, 2 = eel" in said
    (rows,), said = as_classes([torch.eye(3)[[2, 0]]], None)
    assert rows.tolist() == [2, 0]
    (column,), _ = as_classes([torch.tensor([[1.5], [2.5]])], None)
    assert column.tolist() == [1.5, 2.5]


# What answers are


@pytest.mark.parametrize(
    ("answers", "target", "output", "reads", "flat"),
    [
        (torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1]), sm.Classes, "as they are", False),
        (torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([1]), sm.Classes, "probabilities", False),
        (torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([1]), sm.Classes, "labels", False),
        (torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 0]), sm.Classes, "as they are", True),
        (torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0]), sm.Classes, "chance", False),
        (torch.tensor([[3.1], [0.2]]), torch.tensor([2.9, 0.1]), sm.Values, "as they are", True),
        (torch.tensor([[3.1, 1.0]]), torch.tensor([[2.9, 0.1]]), sm.Values, "as they are", False),
        (torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.long), sm.NextToken, "as they are", False),
    ],
    ids="logits probabilities labels logit chance value values symbols".split(),
)
def test_kinds_of_answers(answers: Tensor, target: Tensor, output: type, reads: str, flat: bool) -> None:
    kind = kind_of(answers, target, [])
    assert (type(kind.output), kind.reads, kind.flat) == (output, reads, flat)


@pytest.mark.parametrize(
    ("answers", "target", "sentence"),
    [
        (torch.tensor([[torch.nan, 1.0]]), torch.tensor([0]), "NaN or infinite"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), "expected logits"),
        (torch.tensor([1.0, 2.0]), torch.tensor([0, 3]), "one number cannot tell"),
        (torch.randn(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), "several classes at once"),
        (torch.randn(2, 3), torch.tensor([0.5, 0.1]), "meet targets"),
    ],
    ids="nan maps binary multilabel mismatch".split(),
)
def test_answers_of_no_kind(answers: Tensor, target: Tensor, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        kind_of(answers, target, [])


def test_probabilities_become_logits_of_the_same_distribution() -> None:
    shares = net()(X).softmax(-1)
    assert torch.allclose(read(shares, "probabilities").softmax(-1), shares, atol=1e-6)
    chance = net(1)(X)[:, 0].sigmoid()
    assert torch.allclose(read(chance, "chance"), torch.logit(chance), atol=1e-4)
    sure = read(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "probabilities")
    assert sure.isfinite().all()
    assert read(torch.eye(3), "labels").argmax(1).tolist() == [0, 1, 2]


def test_a_criterion_of_torch_gives_a_loss_for_each() -> None:
    batch = sm.Batch(X, torch.tensor([0, 1, 2, 0, 1, 2]))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    losses = per_example(criterion)(net(), batch)
    assert losses.shape == (6,)
    assert torch.allclose(losses.mean(), criterion(net()(X), batch.target))
    assert criterion.reduction == "mean"
    with pytest.raises(UsageError, match="a loss is a function"):
        per_example("hinge")


# How a module is asked


class Named(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"loss": ids.sum(), "logits": (ids * mask).float()}


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, str]:
        return self.inner(one + two), "and more"


def test_modules_are_called_by_name_by_place_or_with_the_tree() -> None:
    tree = {"ids": torch.ones(2, 3), "mask": torch.zeros(2, 3)}
    assert call_of(Named(), tree, False) == "names"
    assert call_of(net(), tree, False) == "one"
    assert call_of(Placed(), (X, X), False) == "places"
    assert Manner(call="names").wrap(Named())(tree).shape == (2, 3)
    assert torch.equal(Manner(call="places").wrap(Placed())((X, X)), Placed().inner(2 * X))


def test_a_wrapped_module_is_the_same_module() -> None:
    module = net().train()
    module[0].eval()
    wrapped = Manner(scale=Scale(torch.tensor(2.0), torch.tensor(-1.0))).wrap(module)
    assert [part.training for part in module.modules()] == [True, False, True, True]
    assert torch.allclose(wrapped(X), module(2 * X - 1))
    assert wrapped(X[:0]).shape == (0, 3)
    assert wrapped.inner is module


# What may be changed


@pytest.mark.parametrize(
    ("values", "box"),
    [
        (torch.rand(20, 3, 8, 8), (0, 1)),
        (torch.rand(20, 3, 8, 8) * 2 - 1, (-1, 1)),
        (torch.rand(20, 3, 8, 8) * 255, (0, 255)),
        (torch.linspace(-2.1, 2.6, 48).reshape(1, 3, 4, 4), (-2.1, 2.6)),
    ],
    ids="unit signed bytes normalised".split(),
)
def test_the_box_is_seen(values: Tensor, box: tuple[float, float]) -> None:
    found: list[Any] = []
    (surface,) = boxed((), values, None, found).surfaces
    assert isinstance(surface, Box)
    assert (surface.low, surface.high) == pytest.approx(box)
    assert found[0].verdict == "WARN"
    assert any("normalised outside" in finding.evidence for finding in found) == (box == (-2.1, 2.6))


def test_inputs_outside_a_given_box_are_refused() -> None:
    with pytest.raises(UsageError, match=r"outside the declared Box\(0.0, 0.5\)"):
        boxed((), torch.rand(5, 3, 4, 4), (0, 0.5), [])
    with pytest.raises(UsageError, match=r"columns \[1\] hold values outside"):
        boxed((), torch.tensor([[0.0, 5.0], [1.0, 6.0]]), ([0, 0], [1, 5.5]), [])
    with pytest.raises(UsageError, match="box has 3 numbers for 2 columns"):
        boxed((), torch.rand(5, 2), ([0, 0, 0], [1, 1, 1]), [])
    with pytest.raises(UsageError, match="NaN or infinite"):
        boxed((), torch.full((5, 3, 4, 4), torch.nan), None, [])


def test_columns_are_scaled_by_their_own_range() -> None:
    rows = torch.tensor([[10.0, 0.0, 7.0], [30.0, 1.0, 7.0], [20.0, 1.0, 7.0]])
    found: list[Any] = []
    change = boxed((), rows, None, found)
    scaled = change.of(rows)
    assert torch.equal(scaled, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.5, 1.0, 0.0]]))
    assert change.scale is not None
    assert torch.allclose(scaled * change.scale.factor + change.scale.shift, rows)
    assert change.public == ("the range of each column, read off the data",)
    assert "1 do not vary" in found[0].evidence
    assert "columns 1 hold 0 and 1" in found[1].evidence


def test_normalisation_goes_into_the_module_whichever_way_the_data_come() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    raw = torch.rand(10, 3, 4, 4)
    by = [torch.tensor(part)[:, None, None] for part in (mean, std)]
    done = (raw - by[0]) / by[1]
    for values in (raw, done):
        change = normalised((), values, None, (mean, std), [])
        assert change.scale is not None
        assert torch.allclose(change.of(values), raw, atol=1e-6)
        assert torch.allclose(change.of(values) * change.scale.factor + change.scale.shift, done, atol=1e-5)
    with pytest.raises(UsageError, match="neither fits the box"):
        normalised((), done * 3, None, (mean, std), [])


class Reader(nn.Module):
    """Looks up words and, in a larger table, places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 4), nn.Embedding(50, 4)

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        return ((self.words(ids) + self.places(places)) * mask[..., None]).sum(1)


def test_tokens_and_their_table_are_found() -> None:
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0], [1, 9, 8, 7, 2]])
    tree = {"kinds": torch.zeros_like(ids), "ids": ids, "mask": (ids > 0).long()}
    slots = {(name,): leaf for name, leaf in tree.items()}
    (surface,) = worded(Reader(), tree, "names", slots, []).surfaces
    assert surface == Tokens(20, "words", (0, 1, 2), ("ids",))


# Files


def exported(path: Path, module: nn.Module, fixed: int | None = None) -> Path:
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (X[: fixed or 2],), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def scripted(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, X[:2]).save(str(path))  # type: ignore[no-untyped-call]
    return path


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def put(field: int, value: bytes | str | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return number(field << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(field << 3 | 2) + number(len(value)) + value


def onnx(path: Path, layer: nn.Linear, batch: int | None = None) -> Path:
    """One dense layer, written by hand: MatMul and Add of opset 13."""

    def weight(name: str, value: Tensor) -> bytes:
        floats = struct.pack(f"<{value.numel()}f", *value.flatten().tolist())
        return b"".join(put(1, size) for size in value.shape) + put(2, 1) + put(8, name) + put(9, floats)

    def value(name: str, width: int) -> bytes:
        first = put(2, "n") if batch is None else put(1, batch)
        shape = put(1, first) + put(1, put(1, width))
        return put(1, name) + put(2, put(1, put(1, 1) + put(2, shape)))

    def node(kind: str, first: str, second: str, out: str) -> bytes:
        return put(1, first) + put(1, second) + put(2, out) + put(4, kind)

    weights = [weight("w", layer.weight.detach().T.contiguous()), weight("b", layer.bias.detach())]
    graph = put(1, node("MatMul", "x", "w", "h")) + put(1, node("Add", "h", "b", "y")) + put(2, "g")
    graph += b"".join(put(5, w) for w in weights) + put(11, value("x", 4)) + put(12, value("y", 3))
    path.write_bytes(put(1, 8) + put(7, graph) + put(8, put(1, "") + put(2, 13)))
    return path


def test_files_answer_as_the_module_did(tmp_path: Path) -> None:
    module = net()
    for path in (exported(tmp_path / "m.pt2", module), scripted(tmp_path / "m.pt", module)):
        file = open_file(path)
        assert torch.allclose(file(X), module(X), atol=1e-6)
        assert file(X[:1]).shape == (1, 3)
        with pytest.raises(NotApplicable, match="which only answers"):
            WhiteBox(sm.task("digits_cnn", tiny=True), Manner().wrap(file))


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    file = open_file(exported(tmp_path / "m.pt2", net(), fixed=4))
    assert file.batch == 4
    assert torch.allclose(file(X), net()(X), atol=1e-6)


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    layer = nn.Linear(4, 3)
    for batch in (None, 4):
        file = open_file(onnx(tmp_path / "m.onnx", layer, batch))
        assert file.batch == batch
        assert torch.allclose(file(X), layer(X), atol=1e-6)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be opened"):
        open_file(tmp_path / "bad.onnx")


def test_onnx_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").touch()
    monkeypatch.setattr("secure_ml.outside.files.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnxruntime"):
        open_file(tmp_path / "m.onnx")


class Bomb:
    """A pickle that touches a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    for name in ("m.pt", "m.pkl"):
        torch.save(Bomb(mark), tmp_path / name)
        with pytest.raises(UsageError, match="pickle"):
            open_file(tmp_path / name)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UsageError, match="may be damaged"):
        open_file(tmp_path / "raw.pt")
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match="holds weights alone"):
        open_file(tmp_path / "weights.pt")
    assert not mark.exists()


def test_a_pickle_inside_an_exported_file_is_not_opened(tmp_path: Path) -> None:
    """The sample inputs are one, which torch itself would open."""
    from zipfile import ZipFile

    mark, path = tmp_path / "opened", exported(tmp_path / "m.pt2", net())
    torch.save(Bomb(mark), tmp_path / "bomb.pt")
    with ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with ZipFile(tmp_path / "bad.pt2", "w") as bad:
        for name, part in parts.items():
            bad.writestr(name, (tmp_path / "bomb.pt").read_bytes() if "sample_inputs" in name else part)
    with pytest.raises(UsageError, match="cannot be opened"):
        open_file(tmp_path / "bad.pt2")
    assert not mark.exists()


# Estimators


def test_a_classifier_answers_in_the_order_of_its_labels() -> None:
    from sklearn.linear_model import LogisticRegression

    labels = np.array(["no", "yes", "no", "yes", "maybe", "maybe"])
    model = LogisticRegression().fit(X.numpy(), labels)
    asked = Estimator(model)
    assert np.allclose(asked(X).numpy(), model.predict_proba(X.numpy()))
    assert asked.classes(np.array(["yes", "maybe"])).tolist() == [2, 0]
    with pytest.raises(UsageError, match=r"not trained on the labels \['never'\]"):
        asked.classes(np.array(["never"]))


def test_an_estimator_without_probabilities_gives_labels_and_a_regressor_values() -> None:
    from sklearn.linear_model import LinearRegression, Perceptron

    labels = np.array([3, 5, 3, 5, 3, 5])
    perceptron = Perceptron().fit(X.numpy(), labels)
    assert (Estimator(perceptron)(X).argmax(1).numpy() == np.searchsorted([3, 5], perceptron.predict(X.numpy()))).all()
    line = LinearRegression().fit(X.numpy(), X[:, 0].numpy())
    assert torch.allclose(Estimator(line)(X), X[:, 0], atol=1e-5)


# Services


class Service(BaseHTTPRequestHandler):
    """Answers as a module does; what goes wrong first is set by each test."""

    behave: Callable[["Service", list[Any]], tuple[int, Any]]
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append({"body": body, "token": self.headers["Authorization"]})
        status, answer = type(self).behave(self, body["rows"])
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def answers(_: Service, rows: list[Any]) -> tuple[int, Any]:
    return 200, {"out": [{"scores": row} for row in net()(torch.tensor(rows)).softmax(-1).tolist()]}


@pytest.fixture
def service() -> Iterator[Callable[..., Remote]]:
    """Starts a service that behaves in a way, and gives the model behind it."""
    servers = []

    def start(behave: Callable[..., tuple[int, Any]], **settings: Any) -> Remote:
        kind = type("Handler", (Service,), {"behave": behave, "seen": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        usual = {"request": '{"rows": {{inputs}}}', "response": "out.*.scores", "backoff": 0.0, "timeout": 5.0}
        url = f"http://127.0.0.1:{server.server_address[1]}"
        remote = Remote(Endpoint(url=url, **{**usual, **settings}))
        remote.seen = kind.seen  # type: ignore[attr-defined]
        return remote

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_service_answers_as_its_module(service: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_TOKEN", "s3cret")
    remote = service(answers, batch=4, headers={"Authorization": "Bearer ${MODEL_TOKEN}"})
    assert torch.allclose(remote(X), net()(X).softmax(-1), atol=1e-6)
    assert remote.used() == {"inputs sent": 6, "requests sent": 2}
    assert [len(one["body"]["rows"]) for one in remote.seen] == [4, 2]  # type: ignore[attr-defined]
    assert remote.seen[0]["token"] == "Bearer s3cret"  # type: ignore[attr-defined]
    assert "s3cret" not in repr(remote.endpoint)


def test_a_missing_credential_is_named(service: Callable[..., Remote]) -> None:
    with pytest.raises(UsageError, match="the environment variable NO_SUCH_TOKEN"):
        service(answers, headers={"Authorization": "${NO_SUCH_TOKEN}"})(X)


def test_a_service_that_fails_is_asked_again_and_no_input_counts_twice(service: Callable[..., Remote]) -> None:
    failures = iter([500, 429])

    def shaky(self: Service, rows: list[Any]) -> tuple[int, Any]:
        status = next(failures, 200)
        return answers(self, rows) if status == 200 else (status, {})

    remote = service(shaky)
    assert remote(X).shape == (6, 3)
    assert remote.used() == {"inputs sent": 6, "requests sent": 3}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((500, {}), "no answer after 3 tries: status 500"),
        ((403, b"who are you"), "refused with status 403: who are you"),
        ((302, {}), "refused with status 302"),
        ((200, {"out": []}), r"answered 6 inputs with shape \(0,\)"),
        ((200, {"out": [{"scores": [0.1]}] * 5}), r"answered 6 inputs with shape \(5, 1\)"),
        ((200, {"out": [{"scores": [0.1]}, {"scores": [0.1, 0.2]}] * 3}), "holds no numbers at 'out"),
        ((200, {"else": 1}), "holds no numbers at 'out"),
        ((200, b"<html>"), "holds no numbers at 'out.*<html>"),
    ],
    ids="broken forbidden redirect empty short ragged missing html".split(),
)
def test_services_that_give_no_answer(service: Callable[..., Remote], answer: tuple[int, Any], sentence: str) -> None:
    with pytest.raises(Unanswered, match=sentence):
        service(lambda *_: answer, retries=2)(X)


def test_a_service_that_is_too_slow(service: Callable[..., Remote]) -> None:
    def slow(self: Service, rows: list[Any]) -> tuple[int, Any]:
        time.sleep(0.3)
        return answers(self, rows)

    with pytest.raises(Unanswered, match=r"no answer after 2 tries: .*timed out"):
        service(slow, timeout=0.05, retries=1)(X)
    with pytest.raises(Unanswered, match="no answer after 1 tries"):
        Remote(Endpoint(url="http://127.0.0.1:1", retries=0))(X)


def test_the_limit_is_never_exceeded(service: Callable[..., Remote]) -> None:
    remote = service(answers, limit=8)
    remote(X)
    with pytest.raises(BudgetExceeded, match="6 inputs after 6 exceed the 8"):
        remote(X)
    assert remote.used()["inputs sent"] == 6


def test_labels_alone(service: Callable[..., Remote]) -> None:
    def names(_: Service, rows: list[Any]) -> tuple[int, Any]:
        return 200, net()(torch.tensor(rows)).argmax(-1).tolist()

    remote = service(names, response="", classes=3)
    assert torch.equal(remote(X).argmax(-1), net()(X).argmax(-1))
    with pytest.raises(Unanswered, match="else than a class below 2"):
        service(lambda *_: (200, [0, 1, 2, 0, 1, 2]), response="", classes=2)(X)


def test_an_endpoint_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'url = "https://example.org"\nbatch = 8\n[headers]\nAuthorization = "Bearer ${TOKEN}"\n'
    )
    assert Endpoint.read(tmp_path / "s.toml") == Endpoint(
        url="https://example.org", batch=8, headers={"Authorization": "Bearer ${TOKEN}"}
    )
    (tmp_path / "s.json").write_text('{"url": "https://example.org", "batc": 8}')
    with pytest.raises(UsageError, match="did you mean batch"):
        Endpoint.read(tmp_path / "s.json")
    (tmp_path / "bad.toml").write_text("url =")
    with pytest.raises(UsageError, match="cannot be read"):
        Endpoint.read(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "file:///etc/passwd"}, "needs an http"),
        ({"url": "http://x", "request": "{}"}, "holds no {{inputs}}"),
        ({"url": "http://x", "timeout": 0}, "timeout above 0"),
        ({"url": "http://x", "batch": 0}, "batch of at least 1"),
        ({"url": "http://x", "classes": 1}, "2 classes or more"),
        ({"url": "http://x", "retries": -1}, "0 or more"),
    ],
    ids="file template timeout batch classes retries".split(),
)
def test_endpoints_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Endpoint(**settings)
