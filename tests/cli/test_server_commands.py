"""The commands of a deployment before, beside and after a server: one line for what a person can mend."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment
from warm_start import run_warm

from fedlora.client.site.identity import SiteIdentity, identity_files
from fedlora.client.site.printed_site import commented_site
from fedlora.client.site.state import SiteState
from fedlora.common.certificates import expiry, fingerprint_of, generate_key, parse_token, signing_request
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.run_file import parse_run, to_toml
from fedlora.server.disk.claim import Claim
from fedlora.server.disk.status_file import StatusFile
from fedlora.server.disk.stop_request import stop_server
from fedlora.server.identity.authority import Authority
from fedlora.server.run_queue.store import RunStore

LABELS = ["0", "1", "2"]
TOKEN = "fl1-" + base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
NOW = datetime.now(UTC)
LEAST = '[site]\nname = "north"\n[data]\npath = "north.csv"\n'

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run.toml", parse_run({"run": {"name": "tiny"}, "data": {"labels": LABELS}}))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(LEAST)
    return path


@pytest.fixture
def error_of(fedlora: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs a light command in this process, and returns the one line that it fails with."""
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")

    def run(*arguments: str | Path) -> str:
        done = fedlora(*arguments)
        code, out, err = done.code, done.out, done.err  # type: ignore[attr-defined]
        assert code == 1, err
        assert not out if "--json" not in arguments else json.loads(out)["error"]["message"] in err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return str(line.removeprefix("error: "))

    return run


def write_run(path: Path, config: RunConfig) -> Path:
    path.write_text(to_toml(config))
    return path


def start_error(folder: Path, *arguments: str | Path) -> str:
    """Return the error on stderr of a `server start`, in a process of its own, that fails."""
    done = run_warm(["-m", "fedlora.cli", "server", "start", *map(str, arguments)], cwd=folder)
    assert done.returncode == 1, done.stderr
    *logged, line = done.stderr.splitlines()
    assert all(" INFO " in before for before in logged), done.stderr
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def wait_until_written(deployment: Deployment) -> None:
    """Wait until the status file, which is written twice a second, says on which port the server listens."""
    deadline = time.monotonic() + 30
    while json.loads((deployment.out / "status.json").read_text())["port"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["server", "status"], "nowhere: no server has run there; expected the folder given to server start"),
        (["server", "status", "--json"], "nowhere: no server has run there; expected the folder given to server start"),
        (["server", "stop"], "nowhere: no server has run there; expected the folder given to server start"),
        (["sites", "list"], "identity: there is no server's identity; start the server first"),
        (["sites", "revoke", "north"], "identity: there is no server's identity; start the server first"),
        (["sites", "invite", "north"], "holds no run; start the server first, or name the run with --run"),
        (["sites", "invite", "north", "--run", "tiny"], "there is no server's identity; start the server first"),
        (["sites", "invite", "north", "--run", "tiny", "--ca", "missing.pem"], "missing.pem: cannot be read (No such"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_before_a_server_has_started_the_commands_say_so(
    error_of: Callable[..., str], tmp_path: Path, arguments: list[str], line: str
) -> None:
    assert line in error_of(*arguments, "--out", tmp_path / "nowhere")
    assert entries(tmp_path) == set()


def test_where_no_server_runs_nobody_is_stopped_whatever_id_is_recorded(
    error_of: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / ".lock").touch()
    with subprocess.Popen(["sleep", "600"]) as innocent:
        try:
            for pid in (1, 2**30, innocent.pid, "gone"):
                (tmp_path / "status.json").write_text(json.dumps({"run": "tiny", "pid": pid}))
                assert error_of("server", "stop", "--out", tmp_path) == f"{tmp_path}: no server is running there"
            assert innocent.poll() is None
        finally:
            innocent.kill()


def test_who_does_not_heed_a_request_to_stop_is_left_alone_and_said(tmp_path: Path) -> None:
    with Claim(tmp_path / "run", RunConfig(), resume=False), pytest.raises(StoreError, match="has not ended within 0"):
        stop_server(tmp_path / "run", timeout_seconds=0.3)
    assert (tmp_path / "run" / "stop").exists()
    # What was asked of a former holder is not asked of the next.
    with Claim(tmp_path / "run", RunConfig(), resume=True):
        assert not (tmp_path / "run" / "stop").exists()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", "as a whole"),
        (b"{", "as a whole"),
        (b"[]", "as a whole"),
        (b"\xff\xfe\x00", "as a whole"),
        (b"{}", "run"),
        (b'{"run": "tiny", "pid": "none"}', "pid"),
        (b'{"run": "tiny", "pid": 1, "port": 0, "phase": null}', "phase"),
    ],
)
def test_a_damaged_status_is_one_line(error_of: Callable[..., str], tmp_path: Path, content: bytes, place: str) -> None:
    (tmp_path / "status.json").write_bytes(content)
    for options in ([], ["--json"]):
        line = error_of("server", "status", "--out", tmp_path, *options)
        assert line == f"{tmp_path}/status.json is damaged ({place}); a server that runs there writes it anew"
    assert "there is no server's identity" in error_of("sites", "list", "--out", tmp_path)


@pytest.mark.parametrize(
    ("address", "options", "line"),
    [
        ("127.0.0.1:1", [], "this site is not enrolled yet; ask the server's operator for an invitation, and give its"),
        ("127.0.0.1:1", ["--token", "fl1-abc"], "the token has 3 characters after fl1-, expected 43; copy it whole"),
        ("127.0.0.1:1", ["--token", "abc"], "token"),
        ("192.0.2.1:8470", ["--insecure"], "192.0.2.1 is another machine: leave it out, and invite the site"),
        ("nonsense", [], "'nonsense' is no address (it has no port); expected HOST:PORT"),
        ("127.0.0.1:1", ["--ca", "a.pem"], "--ca, --cert and --key go together; give all three, or none of them"),
        ("127.0.0.1:1", ["--cert", "a.pem", "--key", "b.pem"], "--ca, --cert and --key go together"),
        ("127.0.0.1:1", ["--ca", "a.pem", "--cert", "b.pem", "--key", "c.pem"], ".pem: cannot be read"),
        ("http://127.0.0.1:1", [], "'http://127.0.0.1:1' is no address (leave out http://); expected HOST:PORT"),
        ("127.0.0.1:1", ["--token", "x", "--token-file", "y"], "--token and --token-file are two ways to give one"),
        ("127.0.0.1:1", ["--token-file", "missing"], "--token-file missing: cannot be read (No such file"),
        ("127.0.0.1:1", ["--token", TOKEN, "--insecure"], "leave out --insecure and --ca"),
        ("127.0.0.1:1", ["--token", TOKEN], "data.path: 'north.csv' is not there; mend the site file first"),
    ],
)
def test_a_join_that_cannot_be_says_why_and_makes_no_key(
    error_of: Callable[..., str], site: Path, address: str, options: list[str], line: str
) -> None:
    assert line in error_of("client", "join", address, "--site", site, *options)
    # The state's folder with its lock is all that may be there.
    assert entries(site.parent) <= {"site.toml", "north.site"}
    assert entries(site.parent / "north.site") <= {".lock", "wish", "version.json"}


def test_join_prints_a_commented_site_file_and_needs_no_server_for_it(fedlora: Callable[..., object]) -> None:
    done = fedlora("client", "join", "--print-site")
    assert (done.code, done.err) == (0, "")  # type: ignore[attr-defined]
    assert done.out == commented_site()  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [["join", "127.0.0.1:1"], ["status"], ["pause"], ["resume"], ["leave"]])
def test_a_wrong_site_file_is_named_with_what_is_wrong(
    error_of: Callable[..., str], site: Path, command: list[str]
) -> None:
    site.write_text(LEAST + "[limits]\nmax_steps = 0\n")
    line = error_of("client", *command, "--site", site)
    assert line == f"{site}: limits.max_steps is 0: input should be greater than or equal to 1"
    assert error_of("client", *command, "--site", site.parent / "missing.toml").startswith(f"{site.parent}/missing")
    assert entries(site.parent) == {"site.toml"}


@pytest.mark.parametrize("verb", ["status", "pause", "resume", "leave"])
def test_a_client_that_does_not_run_is_said(error_of: Callable[..., str], site: Path, verb: str) -> None:
    state = site.parent / "north.site"
    with SiteState(state):
        pass
    assert error_of("client", verb, "--site", site) == f"{state}: no client of this site is running"
    assert entries(state) == {".lock", "version.json"}


def test_a_client_that_runs_is_paused_and_the_whole_command_to_go_on_is_printed(
    fedlora: Callable[..., Any], tmp_path: Path
) -> None:
    site = tmp_path / "my site.toml"
    site.write_text(LEAST)
    with SiteState(tmp_path / "north.site") as state:
        for verb, wish, line in [
            ("pause", "paused", f"paused; go on with: fedlora client resume --site '{site}'"),
            ("resume", "", "resumed"),
            ("leave", "leave", "leaving"),
        ]:
            done = fedlora("client", verb, "--site", site)
            assert (done.code, done.out, done.err) == (0, f"{line}\n", "")
            assert state.wish() == wish
        (state.folder / "wish").write_bytes(b"\xff\xff")
        assert state.wish() == ""


def test_a_client_that_runs_says_so_with_what_it_is_enrolled_for(fedlora: Callable[..., Any], site: Path) -> None:
    with SiteState(site.parent / "north.site") as state:
        authority = Authority.open(site.parent / "identity", NOW)
        authority.invite("north", ["tiny"], timedelta(hours=1), NOW)
        key = generate_key()
        certificate = authority.enrol("north", signing_request(key, "north"), NOW)
        SiteIdentity(key, certificate, authority.ca_pem, address="fl.example:8470").save(state.folder)
        ends = f"{expiry(certificate):%Y-%m-%d}"
        lines = ["north is at work", f"enrolled at fl.example:8470; the certificate is good until {ends}"]
        assert fedlora("client", "status", "--site", site).out.splitlines() == lines
        state.control("paused")
        assert fedlora("client", "status", "--site", site).out.splitlines() == ["north is paused", lines[1]]
        (file,) = identity_files(state.folder)
        file.write_text("{}")
        assert f"{file} is damaged" in fedlora("client", "status", "--site", site).out


def test_a_token_is_handed_over_in_a_file_that_its_owner_alone_reads(
    fedlora: Callable[..., Any], error_of: Callable[..., str], tmp_path: Path
) -> None:
    authority = Authority.open(tmp_path / "identity", NOW)
    token_file = tmp_path / "tokens" / "north"
    invite = ("sites", "invite", "north", "--run", "tiny", "--out", tmp_path, "--address", "fl.example:8470")
    done = fedlora(*invite, "--token-file", token_file)
    token = token_file.read_text()
    assert parse_token(token).authority_fingerprint == fingerprint_of(authority.ca_pem)
    assert token.strip() not in done.out
    assert done.out.endswith("  fedlora client join fl.example:8470 --site SITE.toml --token-file FILE\n")
    assert token_file.stat().st_mode & 0o777 == 0o600
    (tmp_path / "ca.pem").write_bytes(authority.ca_pem)
    line = error_of(*invite, "--token-file", token_file, "--ca", tmp_path / "ca.pem")
    assert line == "with a PKI of your own there is no token; leave out --token-file"


@pytest.mark.parametrize("verb", ["status", "pause", "resume", "leave"])
def test_who_has_never_joined_cannot_be_controlled(error_of: Callable[..., str], site: Path, verb: str) -> None:
    assert "this site has never joined; join first" in error_of("client", verb, "--site", site)
    assert entries(site.parent) == {"site.toml"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--cert", "a.pem"], "--ca, --cert and --key go together; give all three, or none of them"),
        (["--insecure", "--identity", "x"], "--insecure needs no certificates; leave out --identity, --ca, --cert and"),
        (["--set", "data.lables=3"], "data.lables: unknown key; did you mean data.labels?"),
    ],
)
def test_a_server_with_options_that_do_not_go_together_is_not_started(
    error_of: Callable[..., str], run_file: Path, tmp_path: Path, options: list[str], line: str
) -> None:
    assert line in error_of("server", "start", run_file, "--out", tmp_path / "out", *options)
    assert entries(tmp_path) == {"run.toml"}


def test_a_server_without_labels_is_told_how_to_name_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.toml", RunConfig())
    line = start_error(tmp_path, run, "--out", "out", "--insecure", "--listen", "127.0.0.1:0")
    assert line.startswith("data.labels is empty; a deployment must name the labels")
    assert entries(tmp_path / "out") <= {"status.json"}


def test_a_folder_of_another_run_or_of_other_files_is_left_alone(run_file: Path, tmp_path: Path) -> None:
    other, thesis = tmp_path / "other", tmp_path / "thesis"
    other.mkdir()
    thesis.mkdir()
    before = write_run(other / "run.toml", parse_run({"lora": {"rank": 3}, "data": {"labels": LABELS}})).read_bytes()
    (thesis / "thesis.tex").touch()
    line = start_error(tmp_path, run_file, "--out", "other", "--insecure")
    assert line.startswith("other holds a run that differs from this one: lora.rank is 3, not 8; run.name is 'digits'")
    line = start_error(tmp_path, run_file, "--out", "thesis", "--insecure")
    assert line == "thesis is not empty and holds no run; choose another folder with --out"
    assert (other / "run.toml").read_bytes() == before
    assert entries(other) <= {"run.toml", ".lock", "version.json"}
    assert entries(thesis) == {"thesis.tex"}


def test_a_server_that_waits_is_seen_and_stopped_and_the_same_command_starts_it_again(
    run_file: Path, tmp_path: Path
) -> None:
    with Deployment(tmp_path, run_file, is_insecure=True) as deployment:
        deployment.server.start()
        deployment.server.wait_for("waiting: 0 of 2 sites are ready")
        wait_until_written(deployment)
        status = json.loads(deployment.command("server", "status", "--out", str(deployment.out), "--json").stdout)
        assert (status["is_running"], status["run"], status["port"]) == (True, "tiny", deployment.port)
        assert deployment.server.popen is not None
        assert status["pid"] == deployment.server.popen.pid
        with innocent_in(deployment.out / "status.json") as innocent:
            stopped = deployment.command("server", "stop", "--out", str(deployment.out))
            assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "stopped\n", "")
            assert deployment.server.wait(30) == 0
            assert innocent.poll() is None
        assert not (deployment.out / "stop").exists()
        lines = deployment.command("server", "status", "--out", str(deployment.out)).stdout
        assert lines.startswith("tiny: stopped before round 1 of 10, ")
        said = len(deployment.server.text)
        deployment.server.start()
        deployment.server.wait_for(rf"(?s)\A.{{{said}}}.*listening on")


@contextmanager
def innocent_in(status_file: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a process that has nothing to do with a run, whose status file has its id in place of the server's."""
    status = json.loads(status_file.read_text())
    with subprocess.Popen(["sleep", "600"]) as innocent:
        status_file.write_text(json.dumps(status | {"pid": innocent.pid}))
        try:
            yield innocent
        finally:
            innocent.kill()


def test_a_port_that_is_taken_is_one_line_and_the_folder_can_still_be_used(run_file: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for _ in range(2):
            line = start_error(tmp_path, run_file, "--out", "out", "--insecure", "--listen", address)
            assert line.startswith(f"cannot listen on {address} (")
            assert line.endswith("is another server there? Choose another --listen")
        assert not (tmp_path / "out" / "run.toml").exists()
        assert not os.path.exists(tmp_path / "out" / ".lock")


def wrote(kind: str, folder: Path, identity: Path) -> None:
    """Have a server of a run or of a store note where its identity is, as it does, or as fedlora 0.1 did."""
    config = parse_run({"run": {"name": "tiny"}, "data": {"labels": LABELS}})
    if kind == "store":
        RunStore.opened(folder).write_server(address="", identity=identity)
    else:
        folder.mkdir(exist_ok=True)
        write_run(folder / "run.toml", config)
        with StatusFile(folder, config, identity=identity):
            pass
    if kind == "run of 0.1":
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps(status | {"identity": str(identity.absolute())}))


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["run", "run of 0.1", "store"])
def test_the_commands_on_a_copy_of_a_folder_act_on_the_copys_own_authority(
    fedlora: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    original, copy = tmp_path / "a", tmp_path / "b"
    original.mkdir()
    wrote(kind, original, original / "identity")
    Authority.open(original / "identity", NOW)
    shutil.copytree(original, copy)
    before, copied = files_in(original), files_in(copy)
    for command in (["sites", "invite", "north"], ["sites", "revoke", "north"], ["server", "renew"]):
        done = fedlora(*command, "--out", copy)
        assert done.code == 0, done.err
    assert files_in(original) == before
    (record,) = (copy / "identity" / "sites").glob("north-*.json")
    assert json.loads(record.read_text())["status"] == "revoked"
    assert (copy / "identity" / "ca.pem").read_bytes() != copied[copy / "identity" / "ca.pem"]


@pytest.mark.parametrize("kind", ["run", "run of 0.1", "store"])
@pytest.mark.parametrize("place", ["safe/identity", "a/inside"])
def test_an_authority_that_a_server_keeps_elsewhere_is_found(
    fedlora: Callable[..., Any], tmp_path: Path, kind: str, place: str
) -> None:
    """Even beside one of another key in the folder, from before."""
    folder = tmp_path / "a"
    folder.mkdir()
    wrote(kind, folder, tmp_path / place)
    for identity in (tmp_path / place, folder / "identity"):
        Authority.open(identity, NOW)
    assert fedlora("sites", "invite", "north", "--out", folder).code == 0
    assert list((tmp_path / place / "sites").glob("north-*.json"))
    assert not (folder / "identity" / "sites").exists()
