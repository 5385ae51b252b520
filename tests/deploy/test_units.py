"""The systemd units: by systemd's own judgement, and by what their words ask of the command."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from images import DEPLOY
from programs import judged, program
from typer.testing import CliRunner

from fedlora.cli.main import app

UNITS = DEPLOY / "systemd"
# systemd's own scale: 0 is shut in, 10 exposed. What is left is the network, and of a client its GPUs and data.
MOST_EXPOSED = {"server": 1.5, "client": 2.0}


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
def test_a_unit_is_exposed_no_more_than_its_work_needs(instance: Path) -> None:
    systemd = program("systemd-analyze")
    if "--offline" not in judged(systemd, "--help").stdout:
        pytest.skip("systemd-analyze has no security --offline before 250")
    done = judged(systemd, "security", "--offline=true", "--no-pager", instance)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MOST_EXPOSED["server" if "server" in instance.name else "client"]


@pytest.mark.parametrize("name", ["server", "client"])
def test_a_unit_starts_a_command_that_there_is_and_writes_where_it_may(name: str) -> None:
    settings = settings_of(UNITS / f"fedlora-{name}@.service")
    (line,) = settings["ExecStart"]
    words = [word for word in shlex.split(line) if not word.startswith("$FEDLORA_OPTIONS")]
    assert words[0] == "/opt/fedlora/bin/fedlora"
    asked = CliRunner().invoke(app, [*words[1:3], "--help"])
    for option in (word for word in words if word.startswith("--")):
        assert f"{option} " in asked.output, option
    assert settings["StateDirectory"] == settings["CacheDirectory"]
    assert settings["KillMode"] == ["mixed"], "the command ends its workers itself"
    assert settings["SuccessExitStatus"] == ["143"], "as the command ends at SIGTERM"


def test_the_user_of_the_units_is_made() -> None:
    (line,) = (line for line in (UNITS / "fedlora.sysusers").read_text().splitlines() if line.startswith("u "))
    for unit in UNITS.glob("*.service"):
        assert settings_of(unit)["User"] == settings_of(unit)["Group"] == [shlex.split(line)[1]]
