"""The systemd units: by systemd's own judgement, and by what their words ask of the command."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import require_command
from deployment import Process, free_port
from images import DEPLOY
from programs import judged, program

UNITS = DEPLOY / "systemd"


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def instance(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return the unit of an instance, with this Python's command in place of the one in /opt."""
    unit = tmp_path / f"fedlora-{request.param}@digits.service"
    words = (UNITS / f"fedlora-{request.param}@.service").read_text()
    unit.write_text(words.replace("/opt/fedlora/bin", str(Path(sys.executable).parent)))
    return unit


@pytest.mark.parametrize("instance", ["server", "client"], indirect=True)
def test_systemd_verifies_a_unit(instance: Path) -> None:
    done = judged(program("systemd-analyze"), "verify", "--man=no", instance)
    assert (done.returncode, done.stderr) == (0, "")
    instance.write_text(instance.read_text().replace("ProtectClock=yes", "ProtectClock=perhaps"))
    assert "perhaps" in judged(program("systemd-analyze"), "verify", "--man=no", instance).stderr


@pytest.mark.parametrize("instance", ["server", "client"], indirect=True)
def test_a_unit_is_exposed_no_more_than_the_page_says(instance: Path) -> None:
    said = re.search(
        r"server at most ([\d.]+) and the client at most ([\d.]+), of 10", (DEPLOY / "README.md").read_text()
    )
    assert said
    systemd = program("systemd-analyze")
    if "--offline" not in judged(systemd, "--help").stdout:
        pytest.skip("systemd-analyze has no security --offline before 250")
    done = judged(systemd, "security", "--offline=true", "--no-pager", instance)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= float(said[1 if "server" in instance.name else 2])


@pytest.mark.parametrize("name", ["server", "client"])
def test_a_unit_starts_a_command_that_there_is_and_writes_where_it_may(name: str) -> None:
    settings = settings_of(UNITS / f"fedlora-{name}@.service")
    (line,) = settings["ExecStart"]
    program_path, *words = shlex.split(line.replace("$FEDLORA_OPTIONS", "--listen [::]:8470"))
    assert program_path == "/opt/fedlora/bin/fedlora"
    require_command(words)
    assert settings["StateDirectory"] == settings["CacheDirectory"]
    assert settings["KillMode"] == ["mixed"], "the command ends its workers itself"
    assert settings["SuccessExitStatus"] == ["143"], "as the command ends at SIGTERM"


def test_the_user_of_the_units_is_made() -> None:
    (line,) = (line for line in (UNITS / "fedlora.sysusers").read_text().splitlines() if line.startswith("u "))
    for unit in UNITS.glob("*.service"):
        assert settings_of(unit)["User"] == settings_of(unit)["Group"] == [shlex.split(line)[1]]


@pytest.mark.slow
def test_what_the_units_start_ends_at_their_signal_as_they_expect_and_goes_on(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    for kind in ("runs", "sites"):
        (tmp_path / "fedlora" / kind).mkdir(parents=True)
    shutil.copy(DEPLOY / "runs" / "digits.toml", tmp_path / "fedlora" / "runs" / "one.toml")
    site = (DEPLOY / "sites" / "containers" / "mnist.toml").read_text()
    (tmp_path / "fedlora" / "sites" / "one.toml").write_text(site.replace("/var/lib/fedlora", str(tmp_path)))
    # What the unit's files of the environment and systemd itself give.
    given = {"FEDLORA_OPTIONS": f"--listen {address}", "FEDLORA_SERVER": address, "STATE_DIRECTORY": str(tmp_path)}

    def process_of(name: str, **environment: str) -> Process:
        line = settings_of(UNITS / f"fedlora-{name}@.service")["ExecStart"][0]
        line = line.replace("%i", "one").replace("/etc/fedlora", str(tmp_path / "fedlora"))
        line = re.sub(r"\$\{?(\w+)\}?", lambda match: given[match[1]], line)
        return Process(name, shlex.split(line)[1:], tmp_path / f"{name}.log", tmp_path, environment)

    server = process_of("server")
    client = process_of("client")
    try:
        server.start()
        server.wait_for("listening on")
        token = tmp_path / "token"
        invite = ["sites", "invite", "mnist", "--out", str(tmp_path / "one"), "--token-file", str(token)]
        subprocess.run([sys.executable, "-m", "fedlora.cli", *invite], check=True, capture_output=True)
        client.environment["FEDLORA_TOKEN"] = token.read_text().strip()
        client.start()
        client.wait_for("enrolled as mnist")
        del client.environment["FEDLORA_TOKEN"]
        for _ in range(2):
            client.wait_for("rehearsing")
            assert (server.stop(), client.stop()) == (0, 143)
            for process in (server, client):
                process.log.unlink()
                process.start()
        server.wait_for("site mnist: ready")
    finally:
        server.kill()
        client.kill()
