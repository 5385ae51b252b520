"""Listing, downloading and following adapters, over a real server on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import torch
from relay import Conditions, Relay
from typer.testing import CliRunner

from fedlora.adapters import Adapter, LoraLayer, load_adapter, save_adapter
from fedlora.cli.adapters import adapters_app, announcer, words_of
from fedlora.client.registry_client import AdapterGone, RegistryClient, chosen, connect, watch
from fedlora.client.site.identity import SiteIdentity
from fedlora.common import certificates
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, FedloraError, RunError, StoreError
from fedlora.common.published import Published, from_message, read_published, to_message
from fedlora.common.run_file import to_toml
from fedlora.finished.peft_check import peft_refusal
from fedlora.server.disk.published_folder import roll_back, undo_rollback
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.store import RunFolder
from fedlora.server.identity.authority import Authority
from fedlora.server.record.events import RoundEnded
from fedlora.server.record.round_report import RoundReport
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.port import Port, ServerCertificates
from fedlora.server.sites.grpc.registry import RegistryService, one_run
from fedlora.v1 import registry_pb2
from fedlora.v1.registry_pb2_grpc import RegistryServiceStub, add_RegistryServiceServicer_to_server

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"]}
SITE = (("fedlora-site", "somebody"),)
DEADLINE_SECONDS = 120.0

Connects = Callable[[], AbstractContextManager[RegistryClient]]


@dataclass
class Served:
    """A run's registry on a port."""

    folder: Path
    registry: Registry
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connects(self, port: int | None = None) -> Connects:
        return lambda: connect(f"127.0.0.1:{port or self.port}", "somebody", None)

    def end_round(self, number: int, *, width: int = 6) -> None:
        """Publish the adapter of a round."""
        random = torch.Generator().manual_seed(number)
        layer = LoraLayer(torch.rand(4, width, generator=random), torch.ones(5, 4), 2.0)
        save_adapter(Adapter({"blocks.0.query": layer}, {}, CONFIG), self.folder / "adapter")
        self.registry.heard(RoundEnded(RoundReport(number, (), {}, {}, None, None, bytes_down=0, bytes_up=0)))
        wait_until(lambda: [published.round for published in self.registry.adapters()][:1] == [number])


def wait_until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.005)


def new_folder(path: Path, run_id: str = "abc") -> Path:
    run = RunFolder(path)
    run.write_manifest({"run_id": run_id, "metric": "accuracy"})
    (path / "run.toml").write_text(to_toml(RunConfig()))
    return path


def port_of(registry: Registry, address: str = "127.0.0.1:0", authority: Authority | None = None) -> Port:
    def add_services(server: grpc.aio.Server) -> None:
        gate = Gate(authority, run="digits")
        service = RegistryService(one_run(registry, gate, run="digits"), gate)
        add_RegistryServiceServicer_to_server(service, server)

    return Port(address, ServerCertificates(authority, None).credentials() if authority else None, add_services)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = new_folder(tmp_path / "run")
    registry = Registry(folder, check=peft_refusal)
    with port_of(registry) as port:
        yield Served(folder, registry, port.number)
        registry.close(is_finished=False)


@pytest.fixture
def client(served: Served) -> Iterator[RegistryClient]:
    with served.connects()() as client:
        yield client


@pytest.fixture
def stub(served: Served) -> Iterator[RegistryServiceStub]:
    with grpc.insecure_channel(served.address) as channel:
        yield RegistryServiceStub(channel)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


def test_adapters_are_listed_newest_first_over_all_pages(served: Served, client: RegistryClient) -> None:
    assert list(client.adapters()) == []
    for number in range(1, 6):
        served.end_round(number)
    for page_size in (1, 2, 5, 100):
        found = list(client.adapters(page_size=page_size))
        assert found == list(served.registry.adapters())
        assert [published.version for published in found] == [5, 4, 3, 2, 1]


def test_pages_follow_each_other_and_a_wrong_token_is_refused(served: Served, stub: RegistryServiceStub) -> None:
    for number in (1, 2, 3):
        served.end_round(number)

    def page(**options: int | str) -> registry_pb2.ListAdaptersResponse:
        request = registry_pb2.ListAdaptersRequest(**options)  # type: ignore[arg-type]
        response: registry_pb2.ListAdaptersResponse = stub.ListAdapters(request, metadata=SITE)
        return response

    first = page(page_size=2)
    served.end_round(4)
    second = page(page_size=2, page_token=first.next_page_token)
    assert [adapter.version for adapter in (*first.adapters, *second.adapters)] == [3, 2, 1]
    assert second.next_page_token == ""
    assert len(page().adapters) == 4
    for token in ("x", "before-", "before-1x", "before--1", f"{first.next_page_token} "):
        assert refusal(lambda token=token: page(page_token=token)) == (  # type: ignore[misc]
            grpc.StatusCode.INVALID_ARGUMENT,
            "page_token",
        )


@pytest.mark.parametrize(
    ("version", "file", "offset", "expected"),
    [
        (2, "adapter_config.json", 0, (grpc.StatusCode.NOT_FOUND, "not_published")),
        (1, "adapter.json", 0, (grpc.StatusCode.NOT_FOUND, "not_published")),
        (1, "../../run.toml", 0, (grpc.StatusCode.NOT_FOUND, "not_published")),
        (1, "adapter_config.json", 10**6, (grpc.StatusCode.OUT_OF_RANGE, "offset")),
    ],
)
def test_what_is_not_published_is_not_sent(
    served: Served,
    stub: RegistryServiceStub,
    version: int,
    file: str,
    offset: int,
    expected: tuple[grpc.StatusCode, str],
) -> None:
    served.end_round(1)
    request = registry_pb2.ReadFileRequest(version=version, file=file, offset=offset)
    assert refusal(lambda: list(stub.ReadFile(request, metadata=SITE))) == expected


def test_every_rpc_asks_who_calls(stub: RegistryServiceStub) -> None:
    calls: list[Callable[[], object]] = [
        lambda: stub.ListAdapters(registry_pb2.ListAdaptersRequest()),
        lambda: list(stub.ReadFile(registry_pb2.ReadFileRequest())),
        lambda: list(stub.WatchAdapters(registry_pb2.WatchAdaptersRequest())),
    ]
    for call in calls:
        assert refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "no_name")


def test_a_download_is_the_published_folder(served: Served, client: RegistryClient, tmp_path: Path) -> None:
    served.end_round(1)
    (published,) = client.adapters()
    folder = client.download(published, tmp_path / "out")
    assert folder == tmp_path / "out" / "digits-v0001"
    origin = served.folder / "published" / "digits-v0001"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in origin.iterdir()
    }
    assert peft_refusal(folder) == ""
    assert [path.name for path in folder.parent.iterdir()] == ["digits-v0001"]


def test_an_adapter_larger_than_expected_is_not_fetched(served: Served, client: RegistryClient, tmp_path: Path) -> None:
    served.end_round(1)
    published = next(client.adapters())
    with pytest.raises(RunError, match=f"takes {published.size_bytes:,} bytes; expected at most 100; it is not"):
        client.download(published, tmp_path / "out", most_bytes=100)
    with pytest.raises(RunError, match="raise --max-megabytes"):
        watch(served.connects(), tmp_path / "out", lambda _folder, _published: None, most_bytes=100)
    assert not (tmp_path / "out").exists()


def test_a_complete_folder_is_left_and_another_one_not_overwritten(
    served: Served, client: RegistryClient, tmp_path: Path
) -> None:
    served.end_round(1)
    (published,) = client.adapters()
    folder = client.download(published, tmp_path)
    before = (folder / "adapter.json").stat().st_mtime_ns
    shutil.rmtree(served.folder / "published")
    assert client.download(published, tmp_path) == folder
    assert (folder / "adapter.json").stat().st_mtime_ns == before
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(StoreError, match="holds another adapter"):
        client.download(published, tmp_path)


def test_a_download_that_is_cut_in_the_middle_goes_on_from_there(served: Served, tmp_path: Path) -> None:
    served.end_round(1, width=500_000)
    (published,) = served.registry.adapters()
    size = published.size_bytes
    conditions = Conditions(reset_after_bytes_down=size // 2, max_resets=1)
    with Relay(("127.0.0.1", served.port), conditions=conditions) as relay:
        with served.connects(relay.port)() as client, pytest.raises(grpc.RpcError):
            client.download(published, tmp_path)
        part = tmp_path / ".digits-v0001.part" / "adapter_model.safetensors"
        have = part.stat().st_size
        assert 0 < have < size
        before = relay.bytes_down
        with served.connects(relay.port)() as client:
            folder = client.download(published, tmp_path)
        assert relay.bytes_down - before < size - have + 100_000
    assert load_adapter(folder).layers["blocks.0.query"].A.shape == (4, 500_000)
    assert not part.exists()


def test_a_part_of_something_else_is_fetched_again(served: Served, client: RegistryClient, tmp_path: Path) -> None:
    served.end_round(1)
    (published,) = client.adapters()
    part = tmp_path / ".digits-v0001.part"
    part.mkdir()
    (part / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    (part / "adapter_config.json").write_bytes(b"\0" * 4_000)
    (part / "left.bin").write_bytes(b"")
    folder = client.download(published, tmp_path)
    assert peft_refusal(folder) == ""
    assert len(list(folder.iterdir())) == 3


def test_a_version_that_is_gone_is_said_and_leaves_nothing(
    served: Served, client: RegistryClient, tmp_path: Path
) -> None:
    served.end_round(1)
    (published,) = client.adapters()
    with pytest.raises(AdapterGone, match="digits-v0009 is not kept"):
        client.download(replace(published, name="digits-v0009", version=9), tmp_path)
    assert list(tmp_path.glob(".*part")) == []


def test_what_is_withdrawn_is_listed_and_sent_no_more_as_soon_as_the_operator_has_said_so(
    served: Served, client: RegistryClient, stub: RegistryServiceStub
) -> None:
    for number in (1, 2):
        served.end_round(number)
    roll_back(served.folder, None)
    assert [published.version for published in client.adapters()] == [1]
    undo_rollback(served.folder)
    assert [published.version for published in client.adapters()] == [2, 1]
    roll_back(served.folder, None)
    asked = registry_pb2.ReadFileRequest(version=2, file="adapter_config.json")
    assert refusal(lambda: list(stub.ReadFile(asked, metadata=SITE))) == (grpc.StatusCode.NOT_FOUND, "not_published")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".hidden", "-x", "a\n", "adapter.json", "x" * 81])
def test_a_name_that_is_no_plain_one_is_refused(name: str) -> None:
    message = registry_pb2.PublishedAdapter(name=name, version=1)
    with pytest.raises(RunError, match="expected a plain name"):
        from_message(message)
    with pytest.raises(RunError, match="expected a plain name"):
        from_message(registry_pb2.PublishedAdapter(name="a", version=1, files=[registry_pb2.PublishedFile(name=name)]))


def test_what_is_published_travels_whole(served: Served) -> None:
    served.end_round(1)
    (published,) = served.registry.adapters()
    for metric in (None, 0.0, 0.5):
        adapter = replace(published, metric=metric)
        assert from_message(to_message(adapter)) == adapter


def test_a_watch_catches_up_follows_and_ends_with_the_run(served: Served, tmp_path: Path) -> None:
    served.end_round(1)
    served.end_round(2)
    handled: list[tuple[int, bool]] = []

    def handle(folder: Path, published: Published) -> None:
        handled.append((published.version, read_published(folder) == published))

    thread = threading.Thread(target=watch, args=(served.connects(), tmp_path / "out", handle))
    thread.start()
    wait_until(lambda: len(handled) == 2)
    served.end_round(3)
    wait_until(lambda: len(handled) == 3)
    served.end_round(4)
    began = time.monotonic()
    served.registry.close(is_finished=True)
    # Nobody is left who watches: the server may go, for all have what they want.
    assert time.monotonic() - began < 10
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert handled == [(1, True), (2, True), (3, True), (4, True)]


def test_a_watcher_gets_what_an_operator_has_gone_back_to_also_where_it_was_away(
    served: Served, client: RegistryClient, tmp_path: Path
) -> None:
    handled: list[int] = []
    for number in (1, 2, 3):
        served.end_round(number)

    def handle(_folder: Path, published: Published) -> None:
        handled.append(published.version)

    thread = threading.Thread(target=watch, args=(served.connects(), tmp_path / "out", handle), daemon=True)
    thread.start()
    wait_until(lambda: handled == [1, 2, 3])
    roll_back(served.folder, "1")
    served.registry.look()
    wait_until(lambda: handled == [1, 2, 3, 1])
    assert chosen(client.adapters(), "latest").version == 1
    with pytest.raises(RunError, match="there is no adapter digits-v0003; the server has digits-v0001"):
        chosen(client.adapters(), "digits-v0003")
    # Whoever has the withdrawn one and was away is told as well; who has an earlier one goes on from that.
    for after, expected in ((3, 1), (2, 1), (0, 1)):
        assert next(client.announced(after)).version == expected
    undo_rollback(served.folder)
    served.registry.look()
    wait_until(lambda: handled == [1, 2, 3, 1, 2, 3])
    served.registry.close(is_finished=True)
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_second_watch_handles_only_what_is_new_and_another_run_from_its_begin(served: Served, tmp_path: Path) -> None:
    handled: list[str] = []

    def handle(_folder: Path, published: Published) -> None:
        handled.append(f"{published.run} {published.version}")

    served.end_round(1)
    served.registry.close()
    watch(served.connects(), tmp_path / "out", handle)
    watch(served.connects(), tmp_path / "out", handle)
    served.end_round(2)
    watch(served.connects(), tmp_path / "out", handle)
    assert handled == ["abc 1", "abc 2"]
    shutil.rmtree(tmp_path / "out" / "digits-v0001")
    other = Registry(new_folder(tmp_path / "other", "xyz"), check=peft_refusal)
    with port_of(other) as port:
        again = Served(tmp_path / "other", other, port.number)
        again.end_round(1)
        other.close()
        watch(again.connects(), tmp_path / "out", handle)
    assert handled == ["abc 1", "abc 2", "xyz 1"]


def test_a_watch_connects_again_after_the_server_was_away(tmp_path: Path) -> None:
    folder, handled = new_folder(tmp_path / "run"), list[int]()

    def handle(_folder: Path, published: Published) -> None:
        handled.append(published.version)

    registry = Registry(folder, check=peft_refusal)
    with port_of(registry) as port:
        served = Served(folder, registry, port.number)
        served.end_round(1)
        thread = threading.Thread(target=watch, args=(served.connects(), tmp_path / "out", handle))
        thread.start()
        wait_until(lambda: handled == [1])
        registry.close(is_finished=False)
    registry = Registry(folder, check=peft_refusal)
    with port_of(registry, served.address):
        again = replace(served, registry=registry)
        again.end_round(2)
        wait_until(lambda: handled == [1, 2])
        registry.close()
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_a_watcher_that_left_is_forgotten(served: Served, client: RegistryClient) -> None:
    served.end_round(1)
    announced = client.announced(0)
    assert next(announced).version == 1
    announced.close()  # type: ignore[attr-defined]
    began = time.monotonic()
    served.registry.close()
    assert time.monotonic() - began < 10


def test_a_watch_of_a_server_that_refuses_ends_with_the_reason(served: Served, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="give --name"):
        watch(lambda: connect(served.address, "", None), tmp_path, lambda _folder, _published: None)


def test_a_command_is_told_the_folder_and_its_failure_is_reported(
    served: Served, client: RegistryClient, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served.end_round(1)
    (published,) = client.adapters()
    folder = client.download(published, tmp_path)
    names = ("FEDLORA_ADAPTER", "FEDLORA_VERSION", "FEDLORA_NAME")
    code = f"import os, sys; print(sys.argv[1:], *map(os.environ.get, {names}))"
    announcer([sys.executable, "-c", code, "a b; $(c)"])(folder, published)
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [str(folder), f"{['a b; $(c)', str(folder)]} {folder} 1 digits-v0001"]
    assert printed.err == ""
    announcer([sys.executable, "-c", "raise SystemExit(3)"])(folder, published)
    assert capfd.readouterr().err == f"digits-v0001: {sys.executable} ended with 3; the watch goes on\n"
    (tmp_path / "no-program").write_text("\0")
    (tmp_path / "no-program").chmod(0o755)
    announcer([str(tmp_path / "no-program")])(folder, published)
    assert "cannot be run" in capfd.readouterr().err


def test_a_command_line_is_split_without_a_shell_and_its_program_looked_for() -> None:
    assert words_of("") == []
    assert words_of("echo 'a b' $HOME;") == ["echo", "a b", "$HOME;"]
    for command in ("echo 'a", "no-such-program-here x"):
        with pytest.raises(ConfigError, match="--exec"):
            words_of(command)


def test_the_verbs_list_and_download(served: Served, tmp_path: Path) -> None:
    run, plain = CliRunner(), ["--insecure", "--name", "somebody"]
    assert "no adapter is published yet" in run.invoke(adapters_app, ["list", served.address, *plain]).output
    served.end_round(1)
    served.end_round(2)
    table = run.invoke(adapters_app, ["list", served.address, *plain]).output.splitlines()
    assert [line.split()[0] for line in table] == ["name", "digits-v0002", "digits-v0001"]
    listed = json.loads(run.invoke(adapters_app, ["list", served.address, "--json", *plain]).output)
    assert [entry["name"] for entry in listed] == ["digits-v0002", "digits-v0001"]
    assert listed[0] == json.loads((served.folder / "published" / "digits-v0002" / "adapter.json").read_text())
    for named, expected in ([], "digits-v0002"), (["latest"], "digits-v0002"), (["digits-v0001"], "digits-v0001"):
        done = run.invoke(adapters_app, ["download", served.address, *named, "--out", str(tmp_path), *plain])
        assert done.output == f"{tmp_path / expected}\n"
        assert read_published(tmp_path / expected)
    missing = run.invoke(adapters_app, ["download", served.address, "x-v0001", "--out", str(tmp_path), *plain])
    assert isinstance(missing.exception, RunError)
    assert "the server has digits-v0002, digits-v0001" in str(missing.exception)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "0 ways to say who calls"),
        (["--insecure"], "go together"),
        (["--name", "x", "--ca", "a", "--cert", "b", "--key", "c"], "go together"),
        (["--insecure", "--name", "x", "--ca", "a"], "2 ways"),
        (["--ca", "a"], "give all three"),
        (["--site", "no.toml"], "no such file"),
    ],
)
def test_options_that_do_not_say_who_calls_are_refused(options: list[str], reason: str) -> None:
    done = CliRunner().invoke(adapters_app, ["list", "127.0.0.1:1", *options])
    assert isinstance(done.exception, ConfigError)
    assert reason in str(done.exception)


def test_nobody_there_is_one_line() -> None:
    done = CliRunner().invoke(adapters_app, ["list", "127.0.0.1:1", "--insecure", "--name", "x"])
    assert isinstance(done.exception, FedloraError)
    assert str(done.exception).startswith("127.0.0.1:1: cannot be reached")


def test_a_site_lists_with_the_certificate_of_its_state(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path / "identity", now)
    token = certificates.parse_token(authority.invite("here", ("digits",), timedelta(days=1), now))
    _, invitation = certificates.invitation_pair(token, now=now)
    assert authority.invited_site(invitation, now) is not None
    key = certificates.generate_key()
    certificate = authority.enrol("here", certificates.signing_request(key, "here"), now)
    SiteIdentity(key, certificate, authority.ca_pem).save(tmp_path / "here.site")
    site = tmp_path / "site.toml"
    site.write_text('[site]\nname = "here"\n[data]\npath = "x"\n')
    registry = Registry(new_folder(tmp_path / "run"), check=peft_refusal)
    with port_of(registry, authority=authority) as port:
        served = Served(tmp_path / "run", registry, port.number)
        served.end_round(1)
        done = CliRunner().invoke(adapters_app, ["list", served.address, "--site", str(site)])
        assert done.exception is None, done.exception
        assert "digits-v0001" in done.output
        plain = CliRunner().invoke(adapters_app, ["list", served.address, "--insecure", "--name", "here"])
        assert isinstance(plain.exception, FedloraError)


def test_ctrl_c_ends_a_watch_with_exit_130_after_a_failing_command(served: Served, tmp_path: Path) -> None:
    served.end_round(1)
    # A shell that starts these tests in its background has SIGINT ignored, which children inherit.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from fedlora.cli.adapters import adapters_app; adapters_app()"
    options = ["--out", str(tmp_path / "out"), "--exec", "false", "--insecure", "--name", "x"]
    watching = subprocess.Popen(
        [sys.executable, "-c", code, "watch", served.address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline() == f"{tmp_path / 'out' / 'digits-v0001'}\n"
        served.end_round(2)
        assert watching.stdout.readline() == f"{tmp_path / 'out' / 'digits-v0002'}\n"
        wait_until(lambda: '"version": 2' in (tmp_path / "out" / ".watched.json").read_text())
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=DEADLINE_SECONDS)
    finally:
        watching.kill()
        watching.communicate()
    assert watching.returncode == 130
    assert err.splitlines() == [f"digits-v000{number}: false ended with 1; the watch goes on" for number in (1, 2)]
