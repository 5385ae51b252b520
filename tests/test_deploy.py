"""The runs and sites under deploy/: each is read without a complaint, and each site fits a run."""

import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from guide_pages import ROOT, piece_with, pieces

from fedlora.client.site.site_file import for_site, load_site
from fedlora.client.site.terms import objection_to
from fedlora.common.run_file import load_run, require_labels
from fedlora.training.data import load_own_data

DEPLOY = ROOT / "deploy"
RUNS = sorted((DEPLOY / "runs").glob("**/*.toml"))
SITES = {"mnist": "digits", "sans": "digits", "emoji-en": "emoji", "emoji-fr": "emoji"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_run(path).run.name == path.stem


def test_the_runs_that_the_readme_names_are_there() -> None:
    assert {"digits", "emoji", "pictures", "smollm2"} == {path.stem for path in RUNS if path.parent.name == "runs"}


def test_what_is_compared_can_be_tuned() -> None:
    suites = [load_run(path) for path in RUNS if path.parent.name == "compare"]
    assert {config.run.name for config in suites} == {
        "digits-domains",
        "digits-dirichlet",
        "emoji-dirichlet",
        "rated-texts",
        "emoji-vendors",
        "chat-languages",
        "quick",
    }
    for config in suites:
        assert config.evaluation.client_examples > 0, "values are chosen on the clients' validation"


@pytest.mark.parametrize("site", SITES)
def test_a_site_has_data_for_its_run(site: str) -> None:
    path = DEPLOY / "sites" / f"{site}.toml"
    config, run = load_site(path), load_run(DEPLOY / "runs" / f"{SITES[site]}.toml")
    require_labels(run)
    assert config.site.name == site
    assert objection_to(run, config) is None
    own = for_site(run, config, beside=path.parent)
    data = load_own_data(own, client=site, only_group=config.data.only_group)
    assert len(data.clients[site].training) > 100
    assert data.labels == run.data.labels


def test_the_commands_for_flowers_certificate_make_one_that_sites_accept(tmp_path: Path) -> None:
    commands = [
        piece.text for piece in pieces(DEPLOY / "flower" / "README.md") if piece.text.startswith("openssl req ")
    ]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace("HOST", "server.example"))
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    key, chain, authority = ((tmp_path / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
    certificate = x509.load_pem_x509_certificate(chain)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        server.start()
        for name in ("127.0.0.1", "localhost"):
            with grpc.secure_channel(f"{name}:{port}", grpc.ssl_channel_credentials(authority)) as channel:
                grpc.channel_ready_future(channel).result(30)
    finally:
        server.stop(None)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "server.example" in names.get_values_for_type(x509.DNSName)


def test_the_threat_model_names_tests_that_there_are() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DEPLOY / "threat-model.md").read_text()))
    there = {
        name
        for path in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    assert len(named) > 40
    assert named <= there


def test_the_readmes_trainer_is_that_of_the_script_in_deploy() -> None:
    example = piece_with(ROOT / "README.md", "python", "def make_trainer")
    assert (DEPLOY / "runs" / "own_trainer.py").read_text(encoding="utf-8").endswith(f"\n{example}")
