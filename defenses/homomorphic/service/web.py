"""The HTTP face of the server: a few addresses, bytes in and bytes out, every refusal a sentence in JSON."""

import inspect
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from importlib import import_module
from typing import Any

from defenses.homomorphic.service.front import Body, Front, Refusal
from secure_ml.errors import UsageError, unknown

BYTES = "application/octet-stream"
CONNECTIONS = 8
"""Open connections for each request that may be in hand, those included that have sent nothing yet."""


def check_installed() -> None:
    """Raise `UsageError` where what serves over HTTP is not installed."""
    try:
        import_module("fastapi")
        import_module("uvicorn")
    except ImportError:
        raise UsageError("serving over HTTP needs FastAPI and uvicorn: pip install 'secure-ml[serve]'") from None


def web_application(front: Front) -> Any:
    """FastAPI's application: ``/health``, ``/contract``, ``/keys``, ``/keys/FINGERPRINT`` and ``/answers``."""
    check_installed()
    from fastapi import FastAPI, Request, Response
    from starlette.requests import ClientDisconnect

    app = FastAPI(title="Encrypted inference", openapi_url=None)

    async def pieces(request: Request) -> AsyncIterator[bytes]:
        try:
            async for piece in request.stream():
                yield piece
        except ClientDisconnect:
            raise Refusal(499, "the client left in the middle of its message") from None

    def body(request: Request) -> Body:
        length = request.headers.get("content-length", "")
        return Body(pieces(request), int(length) if length.isdigit() else None, front.limits.seconds)

    def address(request: Request) -> str:
        return request.client.host if request.client else ""

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        headers = {"connection": "close"} if refusal.status in (408, 413, 499) else {}
        if refusal.wait:
            headers["retry-after"] = str(int(refusal.wait) + 1)
        said = json.dumps({"error": str(refusal)})
        return Response(said, refusal.status, headers, media_type="application/json")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"contract": front.contract.id}

    @app.get("/contract")
    async def contract(request: Request) -> dict[str, Any]:
        async with front.admitted(address(request)):
            return dict(front.about)

    @app.get("/keys/{keys}")
    async def kept(request: Request, keys: str) -> dict[str, str]:
        async with front.admitted(address(request)):
            return {"keys": front.kept(keys).stem}

    @app.post("/keys", status_code=201)
    async def keys(request: Request) -> dict[str, str]:
        async with front.admitted(address(request)):
            return {"keys": await front.keys(body(request))}

    @app.post("/answers")
    async def answers(request: Request) -> Response:
        async with front.admitted(address(request)):
            answer = await front.answer(body(request), request.is_disconnected)
        return Response(answer, media_type=BYTES)

    return app


def bound(front: Front, host: str, port: int, settings: Mapping[str, Any] | None = None) -> tuple[Any, socket.socket]:
    """Uvicorn's server, with settings of its own (those of TLS, say), and the socket that it shall listen at."""
    app = web_application(front)
    import uvicorn

    chosen: dict[str, Any] = {
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "log_config": None,  # uvicorn's would close the handlers that others in this process have set up
        "log_level": logging.WARNING,
        "limit_concurrency": CONNECTIONS * front.limits.waiting,
        "timeout_graceful_shutdown": 5,
        **(settings or {}),
    }
    known = inspect.signature(uvicorn.Config).parameters
    for name in chosen:
        if name not in known or name in ("app", "host", "port"):
            raise unknown("setting of uvicorn", name, known)
    try:
        config = uvicorn.Config(app, **chosen)
        config.load()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return uvicorn.Server(config), socket.create_server((host, port), family=family)
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"cannot serve at {host}:{port}: {error}") from None


def listen(front: Front, host: str, port: int, settings: Mapping[str, Any] | None = None) -> None:
    """Serve until interrupted; the port is the system's choice where it is 0."""
    server, heard = bound(front, host, port, settings)
    scheme = "https" if (settings or {}).get("ssl_certfile") else "http"
    place = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"serving {front.contract.id} at {scheme}://{place}:{heard.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[heard])
