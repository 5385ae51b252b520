"""Servers and sites from their invitation to their end, by the commands that people type."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from deployment import Deployment, Process

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]

LABELS = 'data.labels=["0","1","2"]'


def site_file(folder: Path, name: str, data: Path, *, model: Path) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        f'[site]\nname = "{name}"\n[data]\npath = "{data}"\nonly_group = "chalk"\n'
        f'[limits]\nbase_models = ["{model}"]\nleast_examples = 1\n'
    )
    return path


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the error in which a command ended, which is one line below what was logged."""
    assert done.returncode == 1, done.stderr
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: "), done.stderr
    return line.removeprefix("error: ")


def wait_until_known(deployment: Deployment) -> None:
    """Wait until the status file, which is written twice a second, says where the server listens."""
    deadline = time.monotonic() + 30
    while json.loads((deployment.out / "status.json").read_text())["address"] != deployment.address:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def records(log: str) -> list[dict[str, str]]:
    """Return the records of a log in JSON, of which every line is one, with date, time and zone."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all(datetime.fromisoformat(record["time"]).tzinfo is not None for record in found)
    assert {record["level"] for record in found} <= {"info", "warning", "error"}
    return found


def test_an_invitation_survives_every_mistake_and_then_lets_the_site_in(
    run_file: RunFile,
    tiny_digits: Path,
    tiny_vision_model: Path,
    tmp_path: Path,
    fedlora_here: Command,
    monkeypatch: pytest.MonkeyPatch,
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
        wait_until_known(deployment)

        invited = fedlora_here("sites", "invite", "north", "--out", out)
        assert not (deployment.out / "identity").exists()
        # It knows where its server listens, and the token is not in the line to type.
        assert f"fedlora client join {deployment.address} --site SITE.toml --token -\n" in invited.stdout
        token = re.search(r"fl1-[A-Za-z0-9_-]+", invited.stdout)
        assert token
        (tmp_path / "token").write_text(f"{token[0]}\n")
        given = ("--token-file", tmp_path / "token")

        misspelt, lost = (
            site_file(tmp_path, "nrth", tiny_digits, model=tiny_vision_model),
            site_file(tmp_path, "north", tmp_path / "nowhere", model=tiny_vision_model),
        )
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

        site = deployment.add_site("north", site_file(tmp_path, "north", tiny_digits, model=tiny_vision_model))
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


class OwnAuthority:
    """A PKI as a company has it: RSA keys, and certificates that name hosts or people."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        self.write("ca.pem", self._signed(self.name, self.key.public_key(), is_authority=True))

    def options(self, name: str, *, hosts: Sequence[str] = (), ca: Path | None = None) -> list[str]:
        """Return --ca, --cert and --key with a new certificate for `name`; `ca` in place of this authority's own."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        files = {
            "--ca": ca or self.folder / "ca.pem",
            "--cert": self.write(f"{name}.pem", self._signed(subject, key.public_key(), hosts=hosts)),
            "--key": self.write(f"{name}.key", pem),
        }
        return [part for option, file in files.items() for part in (option, str(file))]

    def write(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def _signed(
        self, subject: x509.Name, key: rsa.RSAPublicKey, *, is_authority: bool = False, hosts: Sequence[str] = ()
    ) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=20))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_federation_with_an_authority_of_its_own_lets_in_whom_it_names_and_nobody_else(
    run_file: RunFile,
    tiny_digits: Path,
    tiny_vision_model: Path,
    tmp_path: Path,
    fedlora_here: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    ours, foreign = OwnAuthority(tmp_path / "our authority"), OwnAuthority(tmp_path / "foreign authority")
    with Deployment(tmp_path, run_file("federation.sites=1", "federation.rounds=500", LABELS)) as deployment:
        deployment.server.arguments = [*deployment.server.arguments, *ours.options("server", hosts=["localhost"])]
        deployment.server.start()
        deployment.server.wait_for("listening on")
        out, address = str(deployment.out), f"localhost:{deployment.port}"
        north = site_file(tmp_path, "north", tiny_digits, model=tiny_vision_model)

        allowed = fedlora_here("sites", "invite", "north", "--out", out)
        assert "north may take part in tiny with its certificate; at the site:" in allowed.stdout
        # The folder of an authority of one's own is not given one of ours.
        assert not (deployment.out / "identity" / "ca.key").exists()

        def join(name: str, file: Path, options: Sequence[str]) -> Process:
            process = deployment.add_site(name, file, address=address)
            process.arguments = [*process.arguments, *options]
            process.start()
            return process

        site = join("north", north, ours.options("north"))
        deployment.server.wait_for(r"round +1/500")
        stranger = site_file(tmp_path, "stranger", tiny_digits, model=tiny_vision_model)
        refused = fedlora_here("client", "join", address, "--site", stranger, *ours.options("stranger"))
        assert error_of(refused) == "the server does not know this site; ask for an invitation"
        other = fedlora_here("client", "join", address, "--site", stranger, *ours.options("north"))
        assert error_of(other).startswith("the certificate is for 'north', and the site file names 'stranger'")
        # With the right name, of another authority: it gets as far as the handshake.
        forged = join("forged", stranger, foreign.options("stranger", ca=ours.folder / "ca.pem"))
        forged.wait_for("WARNING .*trying again")
        assert "connected to" not in forged.text
        assert forged.stop() == 128 + signal.SIGTERM

        assert fedlora_here("sites", "revoke", "north", "--out", out).returncode == 0
        assert site.wait(60) == 1
        assert "error: this site was revoked; ask for a new invitation" in site.text
        listed = fedlora_here("sites", "list", "--out", out).stdout
        assert re.search(r"north +revoked", listed)
        assert deployment.server.stop() == 0
