"""Models of the hub, which is a server on this machine here: fetched, kept, and refused in one line."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from huggingface_hub import constants

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models import checkpoint
from fedlora.models.base_model import load_base_model

MakeRun = Callable[..., RunConfig]
LABELS = ("a", "b", "c")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(config: RunConfig) -> str:
    """Return the one line with which the base model is refused."""
    with pytest.raises(ModelError) as refused:
        load_base_model(config, LABELS)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that sets the hub's address; nothing is in its cache yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoint, "HUB_TIMEOUT_SECONDS", 0.3)

    def set_address(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return set_address


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Yield the address of a server that takes a request and never answers, as a firewall makes of any."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def hub(tiny_vision_model: Path) -> Iterator[str]:
    """Yield the address of a hub that has one model, somebody/tiny."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            file = tiny_vision_model / self.path.removeprefix(f"/somebody/tiny/resolve/{COMMIT}/")
            if "/tree/" in self.path:
                files = [
                    {"type": "file", "path": file.name, "oid": file.name, "size": file.stat().st_size}
                    for file in tiny_vision_model.iterdir()
                ]
                self.answer(200, json.dumps(files).encode())
            elif self.path.startswith("/api/models/somebody/tiny"):
                files = [{"rfilename": file.name} for file in tiny_vision_model.iterdir()]
                self.answer(200, json.dumps({"id": "somebody/tiny", "sha": COMMIT, "siblings": files}).encode())
            elif file.is_file():
                self.answer(200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT})
            else:
                is_other = "somebody/tiny" not in self.path
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound" if is_other else "EntryNotFound"})

        def answer(self, status: int, content: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_hub_that_cannot_be_reached_is_one_line_within_seconds(
    vision_run: MakeRun, set_hub: Callable[[str], None], silent_server: str
) -> None:
    for address in ("http://127.0.0.1:9", silent_server):
        set_hub(address)
        began = time.monotonic()
        line = refusal(vision_run(model={"name": "nobody/nothing"}))
        assert "no folder nobody/nothing" in line
        assert "cannot be reached" in line
        assert time.monotonic() - began < 5


def test_a_model_that_the_hub_does_not_have_is_one_line(
    vision_run: MakeRun, set_hub: Callable[[str], None], hub: str
) -> None:
    set_hub(hub)
    assert "the hub shows no such model" in refusal(vision_run(model={"name": "nobody/nothing"}))


def test_a_hub_model_is_loaded_and_then_again_from_the_cache_without_the_hub(
    vision_run: MakeRun, set_hub: Callable[[str], None], hub: str
) -> None:
    config = vision_run(model={"name": "somebody/tiny"})
    set_hub(hub)
    first = load_base_model(config, LABELS)
    set_hub("http://127.0.0.1:9")
    again = load_base_model(config, LABELS)

    assert first.fingerprint == again.fingerprint == load_base_model(vision_run(), LABELS).fingerprint
    assert torch.equal(*(base.module.embeddings.cls_token for base in (first, again)))
