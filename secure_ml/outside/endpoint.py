"""A model behind HTTP: a template of the request, a path into the response."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from torch import Tensor

from secure_ml.batch import Batch, Tree, leaves
from secure_ml.discovery import construct
from secure_ml.errors import BudgetExceeded, NotApplicable, UsageError, require
from secure_ml.outside.opaque import Opaque


class Unanswered(NotApplicable):
    """A service gave no answer that could be used: what is being measured through it has no result."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model is served, what it is asked, and where its answers stand in the response.

    ``Endpoint.read("service.toml")`` reads the same fields from TOML or JSON. Raises `UsageError` for settings out of
    range. Redirects are not followed: they could carry a credential elsewhere.
    """

    url: str
    """http or https."""
    request: str = '{"inputs": {{inputs}}}'
    """The body as JSON: ``{{inputs}}`` stands for the batch as nested lists, ``{{inputs.NAME}}`` for one of several."""
    response: str = "outputs"
    """Where the answers stand: keys and numbers parted by dots, ``*`` for each of a list; ``predictions.*.scores``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """``${NAME}`` stands for the environment variable: ``{"Authorization": "Bearer ${MODEL_TOKEN}"}``."""
    classes: int | None = None
    """How many classes there are, where each answer is the number of one and nothing else."""
    batch: int = 64
    """Inputs in one request, at most."""
    timeout: float = 10.0
    """Seconds after which a request is given up."""
    retries: int = 3
    """How often a request is sent again after a timeout, a lost connection, or a status of 429 or 500 and above."""
    backoff: float = 0.5
    """Seconds before the first retry, twice as many before each further one; at least what ``Retry-After`` says."""
    limit: int = 100_000
    """Inputs that may be sent in all, retries left out; one more raises `BudgetExceeded`."""

    def __post_init__(self) -> None:
        require(self.url.startswith(("http://", "https://")), f"an Endpoint needs an http(s) URL; given {self.url!r}")
        require("{{inputs" in self.request, f"the request of an Endpoint holds no {{{{inputs}}}}: {self.request}")
        for name in ("batch", "limit"):
            require(getattr(self, name) >= 1, f"an Endpoint needs a {name} of at least 1; given {getattr(self, name)}")
        require(self.timeout > 0, f"an Endpoint needs a timeout above 0 seconds; given {self.timeout}")
        require(self.retries >= 0 and self.backoff >= 0, "retries and backoff of an Endpoint are 0 or more")
        require(self.classes is None or self.classes >= 2, f"an Endpoint tells 2 classes or more; given {self.classes}")

    @classmethod
    def read(cls, path: Path | str) -> Endpoint:
        """The endpoint that a TOML or JSON file describes; `UsageError` for one that cannot be read."""
        path = Path(path)
        try:
            text = path.read_text()
            settings = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError:
            raise UsageError(f"there is no file {path} that describes an endpoint") from None
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        require(isinstance(settings, dict), f"{path} must hold the fields {', '.join(f.name for f in fields(cls))}")
        return construct("endpoint", cls, settings)


class Remote(Opaque):
    """The model at an endpoint. What was sent is counted, and never more than the endpoint's limit."""

    LARGEST: ClassVar[int] = 2**28
    """Bytes of a response, at most."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.what = "a service over HTTP"
        self.sent = self.requests = 0
        self._opener = build_opener(_Stay)

    def used(self) -> Mapping[str, int]:
        """Inputs that were sent, and requests, retries among them."""
        return {"inputs sent": self.sent, "requests sent": self.requests}

    def spare(self) -> float:
        """What is left of the limit."""
        return self.endpoint.limit - self.sent

    def answer(self, inputs: Tree) -> Tensor:
        """Its answers; `Unanswered` where there are none, or none of the shape that is asked for."""
        whole = Batch(inputs, ())
        if not len(whole):
            return torch.empty(0, self.endpoint.classes or 1)
        if self.sent + len(whole) > self.endpoint.limit:
            raise BudgetExceeded(
                f"{len(whole)} inputs after {self.sent} exceed the {self.endpoint.limit} that the endpoint allows"
            )
        said = torch.cat([self._ask(piece.inputs) for piece in whole.chunks(self.endpoint.batch)])
        if self.endpoint.classes is None:
            return said
        chosen = said.long()
        if said.ndim != 1 or not bool(((chosen == said) & (chosen >= 0) & (chosen < self.endpoint.classes)).all()):
            raise Unanswered(f"the service answers something else than a class below {self.endpoint.classes}")
        return torch.nn.functional.one_hot(chosen, self.endpoint.classes).float()

    def _ask(self, inputs: Tree) -> Tensor:
        n = len(next(leaves(inputs)))
        self.sent += n
        text = self._send(_filled(self.endpoint.request, inputs).encode())
        try:
            said = torch.tensor(_at(json.loads(text), self.endpoint.response.split(".")), dtype=torch.float32)
        except (ValueError, KeyError, IndexError, TypeError):
            raise Unanswered(
                f"the response of the service holds no numbers at {self.endpoint.response!r}: {_short(text)}"
            ) from None
        if said.ndim == 0 or len(said) != n:
            raise Unanswered(f"the service answered {n} inputs with shape {tuple(said.shape)}; expected one for each")
        return said

    def _send(self, body: bytes) -> str:
        """The text of the response, after as many tries as are allowed."""
        here, why = self.endpoint, ""
        headers = {"Content-Type": "application/json", **{k: _expanded(v) for k, v in here.headers.items()}}
        for attempt in range(here.retries + 1):
            self.requests += 1
            wait = here.backoff * 2**attempt
            try:
                request = Request(here.url, data=body, headers=headers, method="POST")  # noqa: S310 - http(s) only
                with self._opener.open(request, timeout=here.timeout) as response:
                    text: str = response.read(self.LARGEST).decode()
                    return text
            except HTTPError as error:
                why = f"status {error.code}"
                if error.code != 429 and error.code < 500:
                    raise Unanswered(f"the service refused with {why}: {_short(error.read(500).decode())}") from None
                later = error.headers.get("Retry-After", "")
                wait = max(wait, float(later)) if later.isdigit() else wait
            except (URLError, TimeoutError, HTTPException, OSError, UnicodeDecodeError) as error:
                why = str(error) or type(error).__name__
            if attempt < here.retries:
                time.sleep(min(wait, 60.0))
        raise Unanswered(f"the service gave no answer after {here.retries + 1} tries: {why}")


class _Stay(HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""


def _expanded(text: str) -> str:
    """A header with its environment variables; `UsageError` for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise UsageError(f"the environment variable {name}, which a header of the endpoint names, is not set")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)


def _filled(template: str, inputs: Tree) -> str:
    named: dict[str, Tree] = {"inputs": inputs}
    if isinstance(inputs, dict):
        named |= {f"inputs.{name}": part for name, part in inputs.items()}

    def value(match: re.Match[str]) -> str:
        if match[1] not in named:
            raise UsageError(f"the request of the endpoint holds {match[0]}; there are: {', '.join(named)}")
        return json.dumps(_listed(named[match[1]]))

    return re.sub(r"\{\{([\w.]+)\}\}", value, template)


def _listed(tree: Tree) -> Any:
    if isinstance(tree, dict):
        return {name: _listed(part) for name, part in tree.items()}
    return [_listed(part) for part in tree] if isinstance(tree, tuple) else tree.tolist()


def _at(value: Any, path: list[str]) -> Any:
    """What stands at a path of keys, numbers and ``*``; an empty key stands for the value itself."""
    if not path or path == [""]:
        return value
    step, *rest = path
    if step == "*":
        return [_at(part, rest) for part in value]
    return _at(value[int(step)] if isinstance(value, list) else value[step], rest)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
