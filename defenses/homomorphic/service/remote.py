"""The client's side of HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from defenses.homomorphic.client import Client
from defenses.homomorphic.contract import Contract
from defenses.homomorphic.service.front import PROTOCOL
from secure_ml.errors import SecureMLError, UsageError

MOST = 1 << 30
"""Bytes of an answer that are read at most."""


class Unanswered(UsageError):  # noqa: N818
    """The server refused, with a status of HTTP and its sentence."""

    def __init__(self, status: int, why: str, wait: float = 0.0) -> None:
        super().__init__(f"the server refused ({status}): {why}")
        self.status, self.wait = status, wait


class Remote:
    """A server at a URL. It is sent ciphertexts and public keys, and nothing else.

    Told to come back later, it does so, as long as that takes no more than ``patience`` seconds in all.
    """

    def __init__(
        self, url: str, *, trusted: Path | None = None, seconds: float = 120.0, patience: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a server; expected http://HOST:PORT or https://HOST:PORT")
        self.url, self.patience, self._path = url, patience, parts.path.rstrip("/")
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(cafile=trusted)
            except OSError as error:
                raise UsageError(f"{trusted} holds no certificates: {error}") from None
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=seconds, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
        self._known: set[str] = set()
        self.sent = self.received = 0
        """Bytes so far."""

    def about(self) -> tuple[Contract, dict[str, Any]]:
        """The server's contract, checked, and what else it says of itself."""
        try:
            said = json.loads(self._ask("GET", "/contract"))
            contract = Contract.from_json(said["contract"])
            protocol, id_ = said["protocol"], said["id"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"what answers at {self.url} is no server of encrypted models") from None
        if protocol != PROTOCOL:
            raise UsageError(
                f"the server speaks version {protocol} of the protocol, this client {PROTOCOL}: update one"
            )
        if id_ != contract.id:
            raise UsageError(f"the server names its contract {id_}, but it is {contract.id}: update one of the two")
        return contract, said

    def send_keys(self, client: Client) -> None:
        """Register the client's public keys."""
        said = json.loads(self._ask("POST", "/keys", client.public_bytes()))
        if said.get("keys") != client.keys:
            raise SecureMLError(f"the server keeps other keys than were sent: {said.get('keys')}, not {client.keys}")

    def ask(self, client: Client, rows: Tensor) -> Tensor:
        """Answers ``(B, *shape)`` to inputs ``(B, in)``, in full precision; keys are sent where they are missing.

        Raises `UsageError` for inputs beyond the contract's range, before anything is sent, and for refusals.
        """
        query = client.encrypt(rows)
        if client.keys not in self._known:
            self._introduce(client)
        try:
            answer = self._ask("POST", "/answers", query)
        except Unanswered as refusal:
            if refusal.status != 404:
                raise
            self.send_keys(client)
            answer = self._ask("POST", "/answers", query)
        return client.decrypt(answer)

    def _introduce(self, client: Client) -> None:
        """Send the keys where the server does not have them, before a large query is sent in vain."""
        try:
            self._ask("GET", f"/keys/{client.keys}")
        except Unanswered as refusal:
            if refusal.status != 404:
                raise
            self.send_keys(client)
        self._known.add(client.keys)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        end = time.monotonic() + self.patience
        while True:
            try:
                return self._asked(method, path, body)
            except Unanswered as refusal:
                if not refusal.wait or time.monotonic() + refusal.wait > end:
                    raise
                time.sleep(refusal.wait)

    def _asked(self, method: str, path: str, body: bytes) -> bytes:
        self.sent += len(body)
        try:
            reply = self._reply(method, path, body)
            content = reply.read(MOST)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise UsageError(f"no server answers at {self.url}: {error or type(error).__name__}") from None
        self.received += len(content)
        if reply.status >= 400:
            later = reply.headers.get("retry-after", "")
            raise Unanswered(reply.status, _sentence(content), float(later) if later.isdigit() else 0.0)
        return content

    def _reply(self, method: str, path: str, body: bytes) -> http.client.HTTPResponse:
        """A reply; a connection that the server closed while it was idle is opened again, once."""
        for last in (False, True):
            fresh = self._connection.sock is None
            try:
                self._connection.request(method, self._path + path, body or None)
                return self._connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self._connection.close()
                if last or fresh:
                    raise
        raise AssertionError


def _sentence(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
