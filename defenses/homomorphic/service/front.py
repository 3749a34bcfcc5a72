"""What the server says to the world: the contract, to whom it listens, and why it refuses."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from defenses.homomorphic.contract import Contract
from defenses.homomorphic.service.limits import Limits, Rates
from defenses.homomorphic.service.workers import Pool
from defenses.homomorphic.wire import LENGTH, MAGIC, unframe
from secure_ml.errors import SecureMLError, UsageError

PROTOCOL = 1
"""Raised when what travels changes its meaning."""
DRAIN = 256 << 20
"""Bytes of a refused body that are still read, and dropped, so that its sender hears why."""
SUFFIX = ".keys"


class Refusal(SecureMLError):  # noqa: N818
    """A request is refused: with this status of HTTP and one sentence."""

    def __init__(self, status: int, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.status, self.wait = status, wait


class Body:
    """A request's body as it arrives, in pieces of bytes."""

    def __init__(self, pieces: AsyncIterator[bytes], length: int | None, seconds: float) -> None:
        self._pieces, self.length = pieces, length
        self._end = time.monotonic() + seconds
        self.seconds, self.seen = seconds, 0

    async def read(self, most: int, kind: str) -> AsyncIterator[bytes]:
        """Its pieces; raises `Refusal` for a body too large, too slow, or of another kind, without keeping it."""
        start = b""
        if (self.length or 0) > most:
            raise await self._too_large(most, kind)
        while piece := await self._next():
            if self.seen > most:
                raise await self._too_large(most, kind)
            if len(start) < len(MAGIC):
                start = (start + piece)[: len(MAGIC)]
                if not MAGIC.startswith(start):
                    await self.drop()
                    raise Refusal(400, f"bytes that are no message of this protocol were given; expected {kind}")
            yield piece

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._end - time.monotonic()):
                async for piece in self._pieces:
                    if piece:
                        self.seen += len(piece)
                        return piece
        except TimeoutError:
            raise Refusal(408, f"{self.seen:,} bytes arrived in {self.seconds:g} s; send the message whole") from None
        return b""

    async def _too_large(self, most: int, kind: str) -> Refusal:
        given = max(self.length or 0, self.seen)
        await self.drop()
        return Refusal(413, f"{given:,} bytes were given; {kind} of this contract has at most {most:,}")

    async def drop(self) -> None:
        """Read the rest, within bounds, and forget it: who still sends does not hear a refusal."""
        while self.seen < DRAIN and await self._next():
            pass


class Front:
    """Takes keys and queries, and hands them to workers; its memory holds one query for each request in hand.

    It is given the contract and the program as a file. Keys are kept in files named by their fingerprint, which the
    workers compute from the bytes themselves.
    """

    def __init__(self, contract: Contract, pool: Pool, spool: Path, limits: Limits, about: Mapping[str, Any]) -> None:
        self.contract, self.pool, self.spool, self.limits = contract, pool, spool, limits
        self.about = {
            "protocol": PROTOCOL,
            "contract": contract.to_json(),
            "id": contract.id,
            "limits": {kind: limits.most(contract, kind) for kind in ("keys", "query")},
            **about,
        }
        self._rates, self._waiting, self._uploads = Rates(limits.rate), 0, 0
        self._clients: OrderedDict[str, Path] = OrderedDict()

    @asynccontextmanager
    async def admitted(self, address: str) -> AsyncIterator[None]:
        """A request's time in hand; raises `Refusal` for one too many, or too soon after the last."""
        wait = self._rates.wait(address, time.monotonic())
        if wait:
            raise Refusal(429, f"more than {self.limits.rate:g} requests a second: ask again in {wait:.2g} s", wait)
        if self._waiting >= self.limits.waiting:
            raise Refusal(503, f"{self._waiting} requests are in hand: ask again in a second", 1.0)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def keys(self, body: Body) -> str:
        """Keep a client's public keys; their fingerprint."""
        if self._uploads >= self.limits.uploads:
            await body.drop()
            raise Refusal(503, f"{self._uploads} clients send keys already: ask again in a second", 1.0)
        self._uploads += 1
        draft = self.spool / f"{uuid4().hex}.draft"
        try:
            with draft.open("wb") as file:
                async for piece in body.read(self.limits.most(self.contract, "keys"), "keys"):
                    file.write(piece)
            found = (await self._ask(draft)).decode()
            kept = self.spool / f"{found}{SUFFIX}"
            draft.replace(kept)
            self._remember(found, kept)
            return found
        finally:
            draft.unlink(missing_ok=True)
            self._uploads -= 1

    def kept(self, keys: str) -> Path:
        """The file of a client's keys; raises `Refusal` where they were never sent, or dropped."""
        if keys not in self._clients:
            raise Refusal(404, f"no keys {keys[:16]} are kept here: send the public keys of this query first")
        return self._clients[keys]

    async def answer(self, body: Body, left: Callable[[], Awaitable[bool]]) -> bytes:
        """The answer to a query; a client that has left meanwhile is not computed for."""
        query = bytearray()
        async for piece in body.read(self.limits.most(self.contract, "query"), "query"):
            query += piece
        message = bytes(query)
        marks = self._marks(message)
        if marks.get("contract") != self.contract.id:
            raise Refusal(
                409,
                f"a query for the contract {marks.get('contract')} was given; this server's is {self.contract.id}: "
                "fetch the contract again, the model or its parameters have changed",
            )
        keys = self.kept(str(marks.get("keys")))
        self._clients.move_to_end(keys.stem)
        if await left():
            raise Refusal(499, "the client left before its query was computed")
        return await self._ask(keys, message)

    def _marks(self, message: bytes) -> dict[str, Any]:
        """The head of a query, before a worker reads all of it."""
        at = len(MAGIC) + LENGTH.size
        size = LENGTH.unpack_from(message, len(MAGIC))[0] if len(message) >= at else 0
        head = MAGIC + LENGTH.pack(size) + message[at : at + size] + LENGTH.pack(0)
        try:
            return unframe("query", head if len(message) >= at + size else message)[0]
        except UsageError as error:
            raise Refusal(400, str(error)) from None

    async def _ask(self, keys: Path, query: bytes = b"") -> bytes:
        try:
            return await self.pool.ask(keys, query)
        except UsageError as error:
            raise Refusal(400, str(error)) from None
        except SecureMLError as error:
            raise Refusal(500, str(error)) from None

    def _remember(self, found: str, kept: Path) -> None:
        os.utime(kept)
        self._clients[found] = kept
        self._clients.move_to_end(found)
        while len(self._clients) > self.limits.clients:
            _, old = self._clients.popitem(last=False)
            old.unlink(missing_ok=True)
