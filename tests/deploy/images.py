"""The Dockerfile and the compose file as values, and what they say run outside of a container.

Paths of a container are mapped into a fresh folder, and the addresses between containers to loopback; all else is
done to the letter.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: RUN, and what stands behind it in one line."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a command in JSON, which a health check has behind its options."""
        return [str(word) for word in json.loads(self.text[self.text.index("[") :])]


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction:
        """Return the last instruction of a kind, which is the one that counts."""
        return [instruction for instruction in self.instructions if instruction.word == word][-1]

    def runs(self) -> list[str]:
        return [instruction.text for instruction in self.instructions if instruction.word == "RUN"]


def stages_of(dockerfile: Path) -> dict[str, Stage]:
    """Return the stages by name; each has the instructions of the stage that it stands on before its own."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, _, text = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = text.split()
            before = stages[base].instructions if base in stages else []
            current = stages[name] = Stage(name, base, list(before))
        elif word and current is not None:
            current.instructions.append(Instruction(word, text.strip()))
    return stages


@dataclass(frozen=True)
class Service:
    """A service of the compose file, over an image of the Dockerfile.

    Attributes:
        words: what is run, entry point and command.
        check: the health check's command; none where there is none.
        mounts: paths in the container, and the volume's name or the file below deploy/ that lies there.
    """

    words: list[str]
    check: list[str]
    mounts: dict[str, str]


def services_of(compose: Path, stages: Mapping[str, Stage]) -> dict[str, Service]:
    """Return the services by name; what a service does not say is the image's."""
    found: dict[str, Any] = yaml.safe_load(compose.read_text())["services"]
    services = {}
    for name, service in found.items():
        stage = stages[service["build"]["target"]]
        entry = service.get("entrypoint") or stage.last("ENTRYPOINT").words
        # A dollar that is not the compose file's own is written twice.
        command = [word.replace("$$", "$") for word in service.get("command") or stage.last("CMD").words]
        said = service.get("healthcheck")
        test = ["CMD", *stage.last("HEALTHCHECK").words] if said is None else said.get("test", [])
        mounts = (volume.split(":") for volume in service["volumes"])
        services[name] = Service([*entry, *command], test[1:], {target: source for source, target, *_ in mounts})
    return services


def laid_out(service: Service, folder: Path) -> dict[str, Path]:
    """Return where the paths of a service lie in `folder`: volumes by their names, files copied and mapped as well."""
    paths: dict[str, Path] = {}
    for target, source in service.mounts.items():
        paths[target] = folder / ("files" if "/" in source else "volumes") / source
    for target, source in service.mounts.items():
        if "/" in source:
            paths[target].parent.mkdir(parents=True, exist_ok=True)
            paths[target].write_text(mapped((DEPLOY / source).read_text(), paths))
        else:
            paths[target].mkdir(parents=True, exist_ok=True)
    return paths


def mapped(text: str, paths: Mapping[str, Path]) -> str:
    """Return a text in which paths of the container are those of this machine; the longest name is taken first."""
    names = sorted(paths, key=len, reverse=True)
    if not names:
        return text
    pattern = "|".join(rf"{re.escape(name)}(?![\w-])" for name in names)
    return re.sub(pattern, lambda match: str(paths[match[0]]), text)


def all_mapped(words: Sequence[str], paths: Mapping[str, Path], addresses: Mapping[str, str]) -> list[str]:
    """Return the words of a command, with this machine's paths and addresses; the first address that fits counts."""
    pattern = "|".join(map(re.escape, addresses))
    return [re.sub(pattern, lambda match: addresses[match[0]], mapped(word, paths)) for word in words]


def environment_of(stage: Stage, paths: Mapping[str, Path]) -> dict[str, str]:
    """Return what a stage sets of the environment: its ENV, and the defaults of its ARG."""
    environment: dict[str, str] = {}
    for instruction in stage.instructions:
        if instruction.word in ("ENV", "ARG"):
            pairs = (pair.partition("=") for pair in shlex.split(instruction.text))
            environment |= {name: mapped(value, paths) for name, _, value in pairs}
    return environment
