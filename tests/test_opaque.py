"""Models that only answer: files, estimators and services answer as the model did that is behind them."""

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

import secure_ml as sm
from secure_ml.access import WhiteBox
from secure_ml.errors import BudgetExceeded, NotApplicable, UsageError
from secure_ml.outside.adapted import Manner
from secure_ml.outside.endpoint import Endpoint, Remote, Unanswered
from secure_ml.outside.estimator import Estimator
from secure_ml.outside.examples import read as read_data
from secure_ml.outside.files import open_file

X = torch.linspace(-1, 2, 24).reshape(6, 4)


def net(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs)).eval()


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


def test_an_estimator_that_knows_its_columns_by_name() -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.linear_model import LogisticRegression

    frame = pandas.DataFrame(X.numpy(), columns=list("abcd"))
    model = LogisticRegression().fit(frame, [0, 1, 0, 1, 0, 1])
    assert np.allclose(Estimator(model)(X).numpy(), model.predict_proba(frame))
    inputs, target = read_data((frame, pandas.Series([0, 1, 0, 1, 0, 1])), "test", [])
    assert torch.equal(inputs, X)  # type: ignore[arg-type]
    assert target.tolist() == [0, 1, 0, 1, 0, 1]


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
