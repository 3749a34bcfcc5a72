"""A headless Chromium, driven by its own protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-allow-origins=*",
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """Where the browser is; None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Page:
    """One tab: what it logged, what it asked the network for, and a way to ask it things."""

    def __init__(self, address: str) -> None:
        import websocket

        self.socket = websocket.create_connection(address, timeout=30)
        self.count, self.events = 0, list[dict[str, Any]]()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """The answer to a call; events that come before it are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": given}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.count:
                assert "error" not in said, said["error"]
                return dict(said["result"])
            self.events.append(said)

    def open(self, address: str) -> None:
        """Go there, and wait until everything is loaded."""
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 30
        while self.js("document.readyState") != "complete" or self.js("location.href") == "about:blank":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)

    def js(self, expression: str) -> Any:
        """The value of an expression."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def requests(self) -> list[str]:
        """Every address that was asked for, but for the page's own file and what it holds itself."""
        self.js("1")
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "file:"))]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the page's policy blocked."""
        self.js("1")
        found = []
        for event in self.events:
            given = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(given["exceptionDetails"]))
            if event["method"] == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(str(given["args"]))
            if event["method"] == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(given["entry"]["text"])
        return found

    def size(self, width: int, height: int = 900) -> None:
        """The window, a telephone's where it is narrow."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """Screen or print, light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[feature])

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        more = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"]))

    def mouse(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """Move the mouse, or press it."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="none")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh browser with one tab; ended with the block."""
    path = chromium()
    assert path is not None
    command = [path, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = Page(_address(profile))
        yield page
        page.socket.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


def _address(profile: Path) -> str:
    """Where the first tab listens; the browser writes its port into its profile."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        port = profile / "DevToolsActivePort"
        if port.exists() and (lines := port.read_text().split()):
            with urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise AssertionError("the browser does not start")
