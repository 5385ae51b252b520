"""Servers and sites from their invitation to their end, by the commands that people type."""

import json
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from deployment import Deployment

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]

LABELS = 'data.labels=["0","1","2"]'


def site_file(folder: Path, name: str, data: Path) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f'[site]\nname = "{name}"\n[data]\npath = "{data}"\nonly_group = "chalk"\n')
    return path


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the error in which a command ended, which is one line below what was logged."""
    assert done.returncode == 1, done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: "), done.stderr
    return line.removeprefix("error: ")


def records(log: str) -> list[dict[str, str]]:
    """Return the records of a log in JSON, of which every line is one, with date, time and zone."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all(datetime.fromisoformat(record["time"]).tzinfo is not None for record in found)
    assert {record["level"] for record in found} <= {"info", "warning", "error"}
    return found


def test_an_invitation_survives_every_mistake_and_then_lets_the_site_in(
    run_file: RunFile, tiny_digits: Path, tmp_path: Path, fedlora_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose identity lies elsewhere, with a log in JSON; and one token through all that can go wrong."""
    with Deployment(tmp_path, run_file("federation.sites=2", LABELS)) as deployment:
        server, log, elsewhere = deployment.server, tmp_path / "server.jsonl", tmp_path / "safe" / "identity"
        server.arguments = [
            *server.arguments, "--identity", str(elsewhere), "--log-format", "json", "--log-file", str(log),
        ]  # fmt: skip
        server.start()
        server.wait_for("waiting: 0 of 2 sites are ready")
        out = str(deployment.out)

        invited = fedlora_here("sites", "invite", "north", "--out", out)
        assert not (deployment.out / "identity").exists()
        # It knows where its server listens, and the token is not in the line to type.
        assert f"fedlora client join {deployment.address} --site SITE.toml --token -\n" in invited.stdout
        token = re.search(r"fl1-[A-Za-z0-9_-]+", invited.stdout)
        assert token
        (tmp_path / "token").write_text(f"{token[0]}\n")
        given = ("--token-file", tmp_path / "token")

        misspelt, lost = site_file(tmp_path, "nrth", tiny_digits), site_file(tmp_path, "north", tmp_path / "nowhere")
        join = ("client", "join", deployment.address, "--site")
        assert "the invitation is for 'north', and the site file names 'nrth'" in error_of(
            fedlora_here(*join, misspelt, *given)
        )
        assert "nowhere' is not there; mend the site file first" in error_of(fedlora_here(*join, lost, *given))
        monkeypatch.setenv("https_proxy", "http://me:hunter#2")
        assert error_of(fedlora_here(*join, misspelt, *given)).startswith("https_proxy is no HTTP proxy's address")
        monkeypatch.delenv("https_proxy")
        listed = fedlora_here("sites", "list", "--out", out).stdout
        assert re.search(r"north +invited", listed)

        site = deployment.add_site("north", site_file(tmp_path, "north", tiny_digits))
        site.environment["FEDLORA_TOKEN"] = token[0]
        site.start()
        site.wait_for(r"INFO enrolled as north")
        site.wait_for("INFO ready")
        assert token[0] not in site.text
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [A-Z]+ ", line)
                   for line in site.text.splitlines()), site.text  # fmt: skip

        # A server that goes away and comes back is one line at the site.
        assert deployment.command("server", "stop", "--out", out).stdout == "stopped\n"
        assert server.wait(30) == 0
        site.wait_for("WARNING .*trying again")
        server.start()
        site.wait_for(r"(?s)connected to.*trying again.*connected to")
        assert site.text.count("trying again") == 1
        assert site.stop() == 128 + signal.SIGTERM
        assert site.text.splitlines()[-1].endswith(" INFO interrupted; the same command goes on")

        assert fedlora_here("sites", "revoke", "north", "--out", out).stdout == "north is revoked\n"
        assert re.search(r"north +revoked", fedlora_here("sites", "list", "--out", out).stdout)
        assert server.stop() == 0
        said = records(log.read_text())
        assert records(server.text) == said
    messages = [record["message"] for record in said]
    for message in ("tiny: loading", f"listening on {deployment.address}", "Enrolled north"):
        assert message in messages
    assert any(message.startswith("stopped: the run was stopped") for message in messages)


# -- an authority of one's own


@dataclass(frozen=True)
class Authority:
    """An authority that openssl knows nothing special of, in files."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
                      "-days", "30", "-subj", "/CN=our authority")  # fmt: skip

    def signed(self, name: str, *, hosts: str = "") -> list[str]:
        """Return the options with the authority's certificate, and a new one from it with its key."""
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                      "-subj", f"/CN={name}")  # fmt: skip
        (self.folder / "hosts").write_text(f"subjectAltName={hosts}\n" if hosts else "")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                      "-out", f"{name}.pem", "-days", "20", "-extfile", "hosts")  # fmt: skip
        files = {"--ca": "ca.pem", "--cert": f"{name}.pem", "--key": f"{name}.key"}
        return [part for option, file in files.items() for part in (option, str(self.folder / file))]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
