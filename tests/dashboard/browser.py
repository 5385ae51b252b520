"""Headless Chromium, driven over its debugging port: what a page shows, asks for and complains of."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--remote-allow-origins=*",
    "--window-size=1280,4000",  # Charts are drawn as they come into view.
)  # fmt: skip
_SECONDS = 30.0


def chromium() -> str | None:
    """Return where Chromium is, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """A page in a browser.

    Attributes:
        complaints: what its console says of errors and warnings, what was thrown, and what failed to load.
        requested: the addresses that it asked for.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._last_id = 0
        self.complaints: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Return the result of a DevTools method."""
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_SECONDS))
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                return message["result"]
            self._heard(message)

    def open(self, address: str) -> None:
        """Open a page, and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression holds."""
        deadline = time.monotonic() + _SECONDS
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never held: {expression}; {self.complaints}"
            time.sleep(0.05)

    def picture(self, path: Path, *, width: int = 1200, dark: bool = False) -> None:
        """Write a picture of the whole page."""
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=theme)
        device = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", height=900, **device)
        height = self.value("document.documentElement.scrollHeight")
        self.call("Emulation.setDeviceMetricsOverride", height=height, **device)
        time.sleep(1.0)
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _heard(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(said["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(said["exceptionDetails"]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                self.complaints.append(str(said["entry"]))
            case "Network.requestWillBeSent":
                self.requested.append(said["request"]["url"])


@contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Tab]:
    """Yield an empty page in a browser of its own, whose files go to `folder`."""
    program = chromium()
    assert program is not None
    command = [program, *_FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _until(lambda: (folder / "DevToolsActivePort").read_text().split()[0])
        listed = _until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list").read())
        target = next(each for each in json.loads(listed) if each["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(timeout=_SECONDS)


def _until(find: Callable[[], Any]) -> Any:
    """Return what is found once it is there."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return find()
        except (OSError, IndexError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
