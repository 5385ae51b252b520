"""The Helm chart, rendered by helm and judged by Kubernetes' own schemas."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from command_line import require_command
from images import DEPLOY, stages_of
from programs import judged, program

from fedlora.client.site.site_file import load_site
from fedlora.common.run_file import load_run

CHART = DEPLOY / "chart"
STAGES = stages_of(DEPLOY / "Dockerfile")
# The oldest that the chart is for, and the newest whose schemas there are.
OLDEST, NEWEST = "1.27.0", "1.37.0"

SITE = '[data]\npath = "package:fedlora.embedded/digits5.npz"\nonly_group = "mnist"\n'
DATA = {
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "pictures", "readOnly": True}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
}
ELSEWHERE = "fl.example.org:8470"
VALUES: dict[str, dict[str, Any]] = {
    "server": {},
    "both": {"clients": {"mnist": {"site": SITE, "tokenSecret": "fedlora-mnist"}}},
    "site": {
        "server": {"enabled": False},
        "clients": {"mnist": {"site": SITE, "server": ELSEWHERE, "gpus": 0, "tokenSecret": "fedlora-mnist", **DATA}},
    },
    "own-pki": {
        "server": {"tlsSecret": "fl-tls", "service": {"type": "LoadBalancer"}},
        "clients": {"mnist": {"site": SITE, "tlsSecret": "mnist-tls"}},
    },
    "every-value": {
        "image": {"tag": "1", "pullSecrets": ["registry"]},
        "server": {
            "extraArgs": ["--set", "federation.rounds=3"],
            "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
            "service": {"type": "NodePort", "nodePort": 30470, "annotations": {"a": "b"}},
            "persistence": {"storageClass": "fast"},
            "networkPolicy": {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "egress": [{"ports": [{"port": 443}]}]},
            "podAnnotations": {"a": "b"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
        },
        "clientDefaults": {
            "gpus": 2,
            "gpuResource": "amd.com/gpu",
            "runtimeClassName": "nvidia",
            "extraArgs": ["--log-file", "/tmp/log"],
            "env": [{"name": "https_proxy", "value": "http://proxy:3128"}],
            "persistence": {"storageClass": "fast"},
            "networkPolicy": {"egress": [{"ports": [{"port": 443}]}]},
            "podAnnotations": {"a": "b"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
        },
        "clients": {"mnist": {"site": SITE, **DATA}, "sans": {"site": SITE, "gpus": 0}},
    },
}

Manifest = dict[str, Any]


def helm(verb: str, folder: Path, values: dict[str, Any], *options: str) -> Any:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    name = [] if verb == "lint" else ["fl"]
    return judged(program("helm"), verb, *name, CHART, "--values", path, *options)


def rendered(folder: Path, values: dict[str, Any]) -> list[Manifest]:
    done = helm("template", folder, values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def workloads_in(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Return kind and name of what has pods."""
    found = ((manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests)
    return [(kind, name) for kind, name in found if kind in ("StatefulSet", "Deployment")]


def pods_in(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield the name of each workload with the specification of its pod and of the one container in that."""
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment"):
            pod = manifest["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield manifest["metadata"]["name"], pod, container


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_renders_to_what_kubernetes_takes(name: str, tmp_path: Path) -> None:
    linted = helm("lint", tmp_path, VALUES[name], "--strict")
    assert linted.returncode == 0, linted.stdout
    manifests = rendered(tmp_path, VALUES[name])
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names) > 0
    for manifest in manifests:
        kubernetes_validate.validate(manifest, OLDEST if name == "every-value" else NEWEST, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_pods_run_as_the_images_user_with_a_read_only_root_and_are_looked_after(name: str, tmp_path: Path) -> None:
    manifests = rendered(tmp_path, VALUES[name])
    user, group = map(int, STAGES["server"].last("USER").text.split(":"))
    for name, pod, container in pods_in(manifests):
        assert pod["automountServiceAccountToken"] is False, name
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, user, group), name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "livenessProbe"} <= set(container), name
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = {volume["name"] for volume in pod["volumes"]} | ({"store"} if "server" in name else set())
        assert set(mounts) == claims, "what is mounted is there, and what is there is mounted"
        assert {"/var/lib/fedlora", "/tmp"} <= set(mounts.values()), "the image writes there"


@pytest.mark.parametrize("name", VALUES)
def test_services_and_policies_choose_the_pods_that_there_are(name: str, tmp_path: Path) -> None:
    manifests = rendered(tmp_path, VALUES[name])
    workloads = [manifest for manifest in manifests if manifest["kind"] in ("StatefulSet", "Deployment")]
    labels = [manifest["spec"]["template"]["metadata"]["labels"] for manifest in workloads]
    selectors = [
        *(manifest["spec"]["selector"]["matchLabels"] for manifest in workloads),
        *(manifest["spec"]["selector"] for manifest in manifests if manifest["kind"] == "Service"),
        *(
            manifest["spec"]["podSelector"]["matchLabels"]
            for manifest in manifests
            if manifest["kind"] == "NetworkPolicy"
        ),
    ]
    peers = [
        peer["podSelector"]["matchLabels"]
        for manifest in manifests
        if manifest["kind"] == "NetworkPolicy"
        for rule in manifest["spec"]["egress"]
        for peer in rule.get("to", [])
    ]
    for selector in (*selectors, *peers):
        assert sum(selector.items() <= each.items() for each in labels) == 1, selector
    assert len([manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]) == len(workloads)


def test_gpus_are_asked_for_by_clients_alone_and_the_image_follows(tmp_path: Path) -> None:
    found = {name: (container["image"], container["resources"]["limits"]) for name, _, container in pods_in(
        rendered(tmp_path, VALUES["every-value"])
    )}  # fmt: skip
    assert found["fl-fedlora-client-mnist"] == ("fedlora-client:1", {"amd.com/gpu": 2, "memory": "16Gi"})
    assert found["fl-fedlora-client-sans"] == ("fedlora-server:1", {"memory": "16Gi"})
    assert found["fl-fedlora-server"] == ("fedlora-server:1", {"memory": "4Gi"})


@pytest.mark.parametrize("name", VALUES)
def test_containers_start_commands_that_there_are(name: str, tmp_path: Path) -> None:
    for _, _, container in pods_in(rendered(tmp_path, VALUES[name])):
        require_command(container["args"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command", [])
            if command[:1] == ["fedlora"]:
                require_command(command[1:])


@pytest.mark.parametrize("name", VALUES)
def test_the_notes_name_commands_and_workloads_that_there_are(name: str, tmp_path: Path) -> None:
    done = helm("install", tmp_path, VALUES[name], "--dry-run=client")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    there = {f"{kind.lower()}/{name}" for kind, name in workloads_in(rendered(tmp_path, VALUES[name]))}
    assert set(re.findall(r"(?:statefulset|deployment)/\S+", notes)) == there
    for words in re.findall(r"-- fedlora (.*)", notes):
        require_command(shlex.split(words))


def test_run_and_site_files_are_such_as_the_command_reads(tmp_path: Path) -> None:
    files = {
        name: content
        for manifest in rendered(tmp_path, VALUES["both"])
        if manifest["kind"] == "ConfigMap"
        for name, content in manifest["data"].items()
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert load_run(tmp_path / "run.toml") == load_run(DEPLOY / "runs" / "digits.toml", ["exchange.precision=bfloat16"])
    site = load_site(tmp_path / "site.toml")
    assert (site.site.name, site.site.state, site.data.only_group) == ("mnist", "/var/lib/fedlora/site", "mnist")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"server": {"rounds": 3}}, "additional properties 'rounds' not allowed"),
        ({"clients": {"Mnist": {"site": SITE}}}, "'Mnist' does not match pattern"),
        ({"clients": {"mnist": {}}}, "missing property 'site'"),
        ({"clients": {"mnist": {"site": SITE, "gpus": -1}}}, "/clients/mnist/gpus"),
        ({"clients": {"mnist": {"site": f"[site]\nname='x'\n{SITE}"}}}, "/clients/mnist/site"),
        ({"server": {"enabled": False}, "clients": {"mnist": {"site": SITE}}}, "clients.mnist.server is empty"),
        (
            {"clients": {"mnist": {"site": SITE, "tlsSecret": "a", "tokenSecret": "b"}}},
            "clients.mnist has tlsSecret and tokenSecret",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    done = helm("template", tmp_path, values)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_schema_knows_every_value_and_the_chart_the_projects_version() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for section in ("image", "server", "clientDefaults"):
        assert set(schema["properties"][section]["properties"]) == set(values[section])
    client = schema["properties"]["clients"]["additionalProperties"]["properties"]
    assert set(client) == {"server", "site", "tokenSecret", *values["clientDefaults"]}
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["appVersion"] in (DEPLOY / "compose.yaml").read_text()
