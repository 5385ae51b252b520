"""deploy/README.md to the letter: its commands are such as there are, and lead from the wheel to a federation."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import require_command
from deployment import Process, free_port
from guide_pages import pieces
from images import DEPLOY
from programs import program

SECONDS = 300.0


def commands_under(heading: str = "") -> list[list[str]]:
    """Return the commands of a section, or of the page, as words."""
    return [
        shlex.split(piece.text)
        for piece in pieces(DEPLOY / "README.md")
        if piece.kind == "command" and piece.heading == (heading or piece.heading)
    ]


def fedloras_words(command: list[str]) -> list[str]:
    """Return what a command of the page gives fedlora, by whatever way it is started; nothing where it is another's."""
    places = [place for place, word in enumerate(command) if word in ("fedlora", "/opt/fedlora/bin/fedlora")]
    return command[places[-1] + 1 :] if places else []


def test_every_command_of_fedlora_on_the_page_is_one_that_there_is() -> None:
    found = [words for command in commands_under() if (words := fedloras_words(command))]
    assert len(found) > 15
    for words in found:
        require_command(words)


def test_the_charts_commands_on_the_page_render(tmp_path: Path) -> None:
    helm = program("helm")
    shutil.copytree(DEPLOY / "chart", tmp_path / "chart")
    shutil.copy(DEPLOY / "runs" / "digits.toml", tmp_path)
    (tmp_path / "site.toml").write_text('[data]\npath = "/data"\n')
    installs = [command for command in commands_under("Chart") if command[:2] == ["helm", "install"]]
    assert len(installs) == 2
    for command in installs:
        words = [
            word.replace("HOST:PORT", "fl.example.org:8470").replace("HOST", "fl.example.org") for word in command[2:]
        ]
        done = subprocess.run([helm, "template", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "kind: NetworkPolicy" in done.stdout


@pytest.mark.slow
def test_a_walk_through_the_page_on_one_machine_works_to_the_letter(tmp_path: Path) -> None:
    """From the server's start to the last client's leave; of what takes time, the walker waits for the end."""
    ports = {port: str(free_port()) for port in ("8470", "8471", "9470", "9471", "9472", "9091")}
    (tmp_path / "share").mkdir()
    share = shutil.copytree(DEPLOY, tmp_path / "share" / "fedlora")
    for targets in (share / "monitoring" / "targets").iterdir():
        targets.write_text(replaced(targets.read_text(), ports))
    walk = Walk(tmp_path, {"/opt/fedlora/share/fedlora": str(share), **ports})
    try:
        for command in (each for heading in WALKED for each in commands_under(heading)):
            walk.type(command)
        assert walk.servers[0].wait(SECONDS) == 0
        assert walk.servers[1].wait(SECONDS) == 0
        assert len(walk.clients) == 2
        for client in walk.clients:
            assert client.wait(SECONDS) == 0, client.text
    finally:
        walk.end()
    assert (tmp_path / "server" / "report.html").exists()
    assert "digits-v0003" in walk.said["adapters list --run digits"]
    assert walk.said["up"].count("=> 1 @") == 3, "the server and both clients are scraped"
    assert "wide is finished" in walk.servers[1].text


WALKED = ("Server", "Clients", "Watch", "Roll back", "Several runs")


class Walk:
    """Types the page's commands; what goes on while others are typed is started, and the rest must end well."""

    def __init__(self, folder: Path, words: dict[str, str]) -> None:
        self.servers: list[Process] = []
        self.clients: list[Process] = []
        self.said: dict[str, str] = {}
        self._folder = folder
        self._words = words
        self._prometheus: subprocess.Popen[bytes] | None = None

    def type(self, command: list[str]) -> None:
        """Type a command as it stands on the page, but for the ports and where the wheel was installed."""
        words = [replaced(word, self._words) for word in command]
        match command:
            case ["fedlora", ("server" | "client") as side, ("start" | "join"), *_]:
                started = self.servers if side == "server" else self.clients
                process = Process(side, words[1:], self._folder / f"{side}{len(started)}.log", self._folder)
                started.append(process)
                process.start()
                process.wait_for("listening on" if side == "server" else "connected to", SECONDS)
            case ["prometheus", *_]:
                self._prometheus = subprocess.Popen([program("prometheus"), *words[1:]], cwd=self._folder)
            case ["promtool", "query", *_]:
                self.said["up"] = self._wait_until(words, lambda said: said.count("=> 1 @") == 3)
            case ["fedlora", "adapters", "rollback", *_]:
                self.servers[0].wait_for("published digits-v0002", SECONDS)
                self._run(words)
            case ["fedlora", "adapters", "list", *_, "--run", "digits"]:
                self.servers[1].wait_for("wide is finished", SECONDS)
                self.said["adapters list --run digits"] = self._run(words)
            case _:
                self._run(words)

    def end(self) -> None:
        """End what was started."""
        for process in (*self.servers, *self.clients):
            process.kill()
        if self._prometheus is not None:
            self._prometheus.kill()
            self._prometheus.wait(30)

    def _run(self, words: list[str]) -> str:
        ours = Path(sys.executable).with_name("fedlora")
        first = ours if words[0] == "fedlora" else program(words[0]) if words[0] == "promtool" else words[0]
        done = subprocess.run([first, *words[1:]], cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def _wait_until(self, words: list[str], holds: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + SECONDS
        while not holds(said := self._try(words)):
            assert time.monotonic() < deadline, said
            time.sleep(1.0)
        return said

    def _try(self, words: list[str]) -> str:
        done = subprocess.run([program(words[0]), *words[1:]], capture_output=True, text=True, check=False)
        return done.stdout


def replaced(text: str, words: dict[str, str]) -> str:
    for former, latter in words.items():
        text = text.replace(former, latter)
    return text
