"""What `fedlora doctor` finds: real folders, ports, certificates and servers, and every problem with its cure."""

import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from connect_proxy import ConnectProxy
from packaging.requirements import Requirement

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import OpenPort, enrolled, open_port

from fedlora.client.site.identity import SiteIdentity, identity_files
from fedlora.client.site.site_file import load_site
from fedlora.common import certificates
from fedlora.common.channels import Credentials
from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.doctor import accelerator, identity, machine, model, network, packages
from fedlora.doctor.finding import Finding, findings_of, ok
from fedlora.doctor.quantising import quantising_error
from fedlora.doctor.subject import Subject, subject_of
from fedlora.server.identity.authority import Authority

MakeRun = Callable[..., RunConfig]

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub out of reach at once, wherever the tests run."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def run_file(vision_run: MakeRun, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(vision_run()))
    return path


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    path = tmp_path / "north.toml"
    (tmp_path / "north.csv").write_text("text,label\n")
    path.write_text('[site]\nname = "north"\n[data]\npath = "north.csv"\n')
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OpenPort]:
    authority = Authority.open(tmp_path / "identity", datetime.now(UTC))
    with open_port(tmp_path, authority) as port:
        yield port


def save(credentials: Credentials, site_file: Path, *, name: str = "north") -> Path:
    """Keep a site's credentials as an enrolment does, and return the file."""
    given = SiteIdentity(credentials.key, credentials.certificate, credentials.authority)
    given.save(site_file.parent / f"{name}.site")
    (path,) = identity_files(site_file.parent / f"{name}.site")
    return path


def by_check(findings: Iterator[Finding] | list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def statuses(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        number: int = taken.getsockname()[1]
        return number


def test_a_machine_that_can_train_has_no_problem(fedlora: Callable[..., Any], run_file: Path) -> None:
    done = fedlora("doctor", run_file, "--listen", f"127.0.0.1:{free_port()}")
    assert (done.code, done.err) == (0, "")
    *lines, total = done.out.splitlines()
    assert all(line.startswith(("ok ", "warning ")) for line in lines), done.out
    assert "problem" not in total
    words = {line.split()[1] for line in lines}
    assert {"python", "packages", "torch", "gpu", "memory", "folders", "environment", "hub", "data", "port"} <= words
    assert "\x1b" not in done.out


def test_the_findings_are_json_too(fedlora: Callable[..., Any], run_file: Path) -> None:
    done = fedlora("doctor", run_file, "--json", "--listen", f"127.0.0.1:{free_port()}")
    found = json.loads(done.out)
    assert {"check", "status", "found", "remedy"} == set(found[0])
    assert {"base model", "port"} <= {finding["check"] for finding in found}


def test_a_problem_has_its_cure_and_ends_with_status_1(fedlora: Callable[..., Any], run_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = fedlora("doctor", run_file, "--listen", f"127.0.0.1:{port}")
    assert (done.code, done.err) == (1, "")
    (line,) = [line for line in done.out.splitlines() if line.startswith("problem")]
    assert f"127.0.0.1:{port} cannot be listened at (Address already in use" in line
    assert f"-> ss -ltnp 'sport = :{port}'; or fedlora server start ... --listen '127.0.0.1:{port + 1}'" in line


def test_a_file_that_cannot_be_read_is_a_problem_and_the_machine_is_looked_at_all_the_same(
    fedlora: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "site.toml").write_text("[site]\nnam = 1\n[data]\n")
    done = fedlora("doctor", tmp_path / "site.toml", "--json", "--listen", f"127.0.0.1:{free_port()}")
    found = [(finding["check"], finding["status"]) for finding in json.loads(done.out)]
    assert done.code == 1
    assert found.count(("file", "problem")) == 3
    assert ("python", "ok") in found


def test_a_site_that_names_no_data_may_bring_a_trainer(fedlora: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[site]\nname = "north"\n')
    done = fedlora("doctor", tmp_path / "site.toml", "--json", "--listen", f"127.0.0.1:{free_port()}")
    (found,) = [finding for finding in json.loads(done.out) if finding["check"] == "data"]
    assert (found["status"], found["found"].partition(",")[0]) == (
        "ok",
        "the file names none: a trainer of one's own brings them",
    )


def test_an_address_that_is_none_is_an_error(fedlora: Callable[..., Any]) -> None:
    done = fedlora("doctor", "--server", "example.org")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: 'example.org' is no address (it has no port); expected HOST:PORT")


def test_a_check_that_breaks_takes_no_other_down() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError("the driver\nis gone")

    found = findings_of({"gpu": broken, "memory": lambda: [ok("memory", "plenty")]})
    assert found == [
        Finding("gpu", "warning", "cannot be looked at (RuntimeError: the driver is gone)"),
        Finding("memory", "ok", "plenty"),
    ]


def test_packages_of_another_version_or_none_are_problems_with_the_command_that_installs_them() -> None:
    needed = [Requirement("torch>=99,<100"), Requirement("no-such-package-here"), Requirement("numpy>=2")]
    first, second, last = packages.against([*needed, Requirement('ray>99; extra == "ray"')])
    assert (first.status, first.remedy) == ("problem", "pip install 'torch<100,>=99'")
    assert (second.found, second.remedy) == (
        "no-such-package-here is not installed; needs any", "pip install no-such-package-here",
    )  # fmt: skip
    assert last == ok("packages", "1 as fedlora needs them")


def test_quantised_weights_without_a_gpu_are_a_problem(vision_run: MakeRun) -> None:
    if accelerator.half_precision() and _has_cuda():
        pytest.skip("there is a GPU here")
    plain, quantised = Subject(run=vision_run()), Subject(run=vision_run(model={"quantization": "4bit"}))
    assert list(accelerator.bitsandbytes(plain)) == []
    (finding,) = accelerator.bitsandbytes(quantised)
    assert (finding.status, finding.remedy) == ("problem", "--set model.quantization=none")
    wanted = Subject(run=vision_run(train={"device": "cuda"}))
    assert by_check(accelerator.torch_and_gpus(wanted))["gpu"].status == "problem"


def test_a_quantising_library_is_tried_where_its_noise_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    package = tmp_path / "bitsandbytes" / "__init__.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    noise = "import atexit, os\nos.write(2, b'noise')\natexit.register(os.write, 2, b'more noise')\n"
    package.write_text(f"{noise}raise RuntimeError('built for\\nanother CUDA')")
    assert quantising_error() == "RuntimeError: built for another CUDA (exit code 1)"
    package.write_text("import os\nos.write(2, b'cannot go on')\nos._exit(9)")
    assert quantising_error() == "cannot go on (exit code 9)"
    assert capfd.readouterr() == ("", "")
    assert "bitsandbytes" not in sys.modules or not str(sys.modules["bitsandbytes"].__file__).startswith(str(tmp_path))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_a_folder_that_cannot_be_written_is_a_problem(site_file: Path) -> None:
    site_file.write_text(site_file.read_text().replace('"north"\n', '"north"\nstate = "/proc/north"\n', 1))
    found = list(machine.folders(subject_of(site_file)))
    (finding,) = [finding for finding in found if "state" in finding.found]
    assert finding.status == "problem"
    assert "/proc/north: cannot be written" in finding.found
    assert finding.remedy


def test_no_secret_of_the_environment_is_shown() -> None:
    variables = {"HF_TOKEN": "hf_abc", "HTTPS_PROXY": "http://me:pass@proxy:3128", "HF_HOME": "/models"}
    (finding,) = machine.environment(variables)
    assert "abc" not in finding.found
    assert "pass" not in finding.found
    assert "https_proxy=http://(login, not shown)@proxy:3128" in finding.found
    assert "HF_HOME=/models" in finding.found
    assert "not set: no_proxy, HF_HUB_OFFLINE, CUDA_VISIBLE_DEVICES" in finding.found


def test_a_hub_out_of_reach_is_a_warning_only(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = model.hub(Subject())
    assert (finding.status, finding.remedy) == ("warning", "export HF_HUB_OFFLINE=1")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as hub:
        threading.Thread(target=hub.handle_request, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        (finding,) = model.hub(Subject())
        assert finding.status == "ok"


def test_a_base_model_that_is_not_here_is_fetched_by_the_cure(vision_run: MakeRun, tmp_path: Path) -> None:
    (finding,) = model.base_model(Subject(run=vision_run()))
    assert finding.status == "ok"
    absent = vision_run(model={"name": "no-such/model-at-all", "revision": "v1"})
    (finding,) = model.base_model(Subject(run=absent))
    assert (finding.status, finding.remedy) == ("warning", "hf download no-such/model-at-all --revision v1")
    (finding,) = model.base_model(Subject(tmp_path / "run.toml", run=vision_run(model={"name": str(tmp_path)})))
    assert finding.status == "problem"
    assert "no config.json" in finding.found


def test_data_that_are_not_there_are_a_problem(site_file: Path) -> None:
    assert statuses(model.data(subject_of(site_file))) == {"data": "ok"}
    (site_file.parent / "north.csv").unlink()
    (finding,) = model.data(subject_of(site_file))
    assert finding.status == "problem"
    assert finding.found == f"{site_file.parent / 'north.csv'}: no such file or folder"


def test_a_site_before_its_enrolment_is_told_how_to_enrol(site_file: Path) -> None:
    (finding,) = identity.site_certificate(subject_of(site_file))
    assert finding.status == "warning"
    assert f"fedlora client join HOST:PORT --site {site_file} --token -" in finding.remedy


def test_an_enrolled_site_reaches_its_server(server: OpenPort, site_file: Path) -> None:
    assert server.authority is not None
    save(enrolled(server.authority, "north"), site_file)
    subject = subject_of(site_file)
    assert statuses(identity.site_certificate(subject)) == {"certificate": "ok"}
    found = by_check(network.reach(server.address, subject))
    assert {check: finding.status for check, finding in found.items()} == dict.fromkeys(
        ("server", "tls", "clock", "health"), "ok"
    )
    assert found["health"].found == "the server serves, and lets north in"


def test_without_a_site_the_way_is_tried_up_to_the_handshake(server: OpenPort) -> None:
    found = by_check(network.reach(server.address, Subject()))
    assert list(found) == ["server", "tls", "clock", "health"]
    assert found["tls"].found == "a handshake succeeds; the certificate is for 'server.fedlora'"
    assert found["health"].found.startswith("not asked")


def test_the_way_through_a_proxy_is_named_and_tried(
    server: OpenPort, site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.authority is not None
    save(enrolled(server.authority, "north"), site_file)
    with ConnectProxy() as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.host}:{proxy.port}")
        found = by_check(network.reach(server.address, subject_of(site_file)))
        assert found["proxy"].found.startswith(f"the way to 127.0.0.1 leads through {proxy.host}:{proxy.port}")
        assert found["health"].status == "ok"
        assert proxy.targets[0] == server.address
    found = by_check(network.reach(server.address, subject_of(site_file)))
    assert found["server"].status == "problem"
    assert found["server"].remedy == "export no_proxy=127.0.0.1"


def test_a_revoked_site_learns_so(server: OpenPort, site_file: Path) -> None:
    assert server.authority is not None
    save(enrolled(server.authority, "north"), site_file)
    server.authority.revoke("north")
    found = by_check(network.reach(server.address, subject_of(site_file)))
    assert (found["health"].status, found["health"].found) == ("problem", "this site was revoked")
    assert found["health"].remedy == "at the server: fedlora sites invite north --out DIR"


def test_another_server_than_the_sites_own_is_a_problem(server: OpenPort, site_file: Path, tmp_path: Path) -> None:
    save(enrolled(Authority.open(tmp_path / "other", datetime.now(UTC)), "north"), site_file)
    found = by_check(network.reach(server.address, subject_of(site_file)))
    assert found["tls"].status == "problem"
    assert "not signed by the authority that the site has enrolled with" in found["tls"].found
    assert found["health"].status == "problem"


def test_a_server_in_plain_text_is_a_warning(tmp_path: Path, site_file: Path) -> None:
    with open_port(tmp_path) as port:
        found = by_check(network.reach(port.address, subject_of(site_file)))
    assert {check: finding.status for check, finding in found.items()} == {
        "server": "ok", "tls": "warning", "health": "ok",
    }  # fmt: skip


@contextmanager
def silent_port() -> Iterator[str]:
    """Give an address where connections are taken and closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                try:
                    listener.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        is_over.set()
        thread.join()


def test_what_is_no_server_of_ours_is_a_problem() -> None:
    with silent_port() as address:
        found = by_check(network.reach(address, Subject()))
    assert found["server"].status == "ok"
    assert found["tls"].status == "problem"
    assert found["tls"].remedy == f"openssl s_client -connect {address} -alpn h2"


def test_nobody_there_and_no_such_name_are_problems_and_the_last_thing_that_is_tried() -> None:
    port = free_port()
    (finding,) = network.reach(f"127.0.0.1:{port}", Subject())
    assert (finding.status, finding.found) == ("problem", f"127.0.0.1:{port}: Connection refused")
    (finding,) = network.reach("no-such-host.invalid:8470", Subject())
    assert finding.found.startswith("no-such-host.invalid has no address")


def test_a_clock_outside_the_servers_certificate_is_a_problem() -> None:
    now = datetime(2030, 5, 1, tzinfo=UTC)
    authority = certificates.generate_key()
    pair = authority, certificates.authority_certificate(authority, now=now)
    shown = certificates.server_certificate(certificates.generate_key(), authority=pair, now=now)
    assert [next(network.clock(shown, now + later)).status for later in (-2 * DAY, -DAY / 2, DAY, 91 * DAY)] == [
        "problem", "warning", "ok", "problem",
    ]  # fmt: skip
    assert next(network.clock(shown, now - 2 * DAY)).remedy == "sudo timedatectl set-ntp true"


def test_a_certificate_that_ends_or_is_anothers_is_told(site_file: Path, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path / "identity", now)
    for age, status in ((80 * DAY, "warning"), (91 * DAY, "problem"), (-5 * DAY, "problem")):
        save(enrolled(authority, "north", now=now - age), site_file)
        assert statuses(identity.site_certificate(subject_of(site_file))) == {"certificate": status}
    path = save(enrolled(authority, "south"), site_file)
    path.chmod(0o644)
    wrong, good, readable = identity.site_certificate(subject_of(site_file))
    assert "is of 'south', and the site file names 'north'" in wrong.found
    assert good.status == "ok"
    assert readable.remedy == f"chmod 600 {path}"
    path.write_text("{}")
    (damaged,) = identity.site_certificate(subject_of(site_file))
    assert damaged.status == "problem"


def test_a_servers_folder_is_looked_at_with_its_certificates(vision_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(to_toml(vision_run()))
    subject = subject_of(tmp_path)
    assert next(identity.server_certificates(subject)).found.startswith("no ")
    now = datetime.now(UTC)
    Authority.open(tmp_path / "identity", now).server_pair(now)
    assert statuses(identity.server_certificates(subject)) == {"certificate": "ok"}
    Authority.open(tmp_path / "identity", now - 100 * DAY).server_pair(now - 100 * DAY)
    (tmp_path / "identity" / "server.key").chmod(0o644)
    found = list(identity.server_certificates(subject))
    assert found[-1].remedy == f"chmod 600 {tmp_path / 'identity' / 'server.key'}"
    (tmp_path / "identity" / "ca.key").unlink()
    (finding,) = identity.server_certificates(subject)
    assert finding.status == "problem"


def test_each_kind_of_file_is_known_by_what_is_in_it(run_file: Path, site_file: Path, tmp_path: Path) -> None:
    assert subject_of(run_file).run is not None
    assert subject_of(site_file).site == load_site(site_file)
    assert subject_of(site_file).state == site_file.parent / "north.site"
    assert subject_of(tmp_path).folder == tmp_path
    assert subject_of(None) == Subject()
    assert os.fspath(tmp_path)
