"""Memory, disks, folders that are written to, and the environment variables that matter."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedlora.common.errors import ConfigError
from fedlora.common.proxies import parse_proxy
from fedlora.doctor.finding import Finding, ok, problem, warning
from fedlora.doctor.subject import Subject

_GIB = 1 << 30
_LITTLE_MEMORY_BYTES = 2 * _GIB
_LITTLE_DISK_BYTES = 10 * _GIB
_NO_DISK_BYTES = 1 * _GIB

_VARIABLES = ("https_proxy", "no_proxy", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES")


def memory() -> Iterator[Finding]:
    """Find out how much memory is free, a container's limit counted."""
    available = _available_bytes()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _container_limit_bytes()
    found = f"{available / _GIB:.1f} of {min(total, limit or total) / _GIB:.1f} GiB free, {os.cpu_count()} cores"
    if available < _LITTLE_MEMORY_BYTES:
        yield warning("memory", f"{found}; a small model alone takes 1 to 2", "--workers 1, and a smaller batch_size")
    else:
        yield ok("memory", found)


def folders(subject: Subject) -> Iterator[Finding]:
    """Find out whether there is room where a run, a site and the hub's cache write, and whether they may."""
    for what, folder in folders_of(subject).items():
        there = _nearest(folder)
        free = shutil.disk_usage(there).free
        found = f"{what} {folder}: {free / _GIB:.1f} GiB free"
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            remedy = f"sudo chown -R $(id -un) {there}" if free else f"df -h {there}"
            yield problem("folders", f"{what} {folder}: cannot be written ({error.strerror})", remedy)
            continue
        if free < _NO_DISK_BYTES:
            yield problem("folders", found, f"du -xh {there} | sort -h | tail")
        elif free < _LITTLE_DISK_BYTES:
            yield warning("folders", f"{found}; a language model takes 2 to 20", f"du -xh {there} | sort -h | tail")
        else:
            yield ok("folders", found)


def folders_of(subject: Subject) -> dict[str, Path]:
    """Return the folders that are written to, by what is in them."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {"models of the hub": Path(HF_HUB_CACHE)}
    if subject.state is not None:
        found["the site's state"] = subject.state
    else:
        found["runs"] = subject.folder or Path.cwd() / "runs"
    return found


def environment(variables: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Say which of the variables that matter are set; no secret is shown."""
    known = {name: variables.get(name) or variables.get(name.upper()) for name in _VARIABLES}
    shown = [f"{name}={_without_secrets(name, value)}" for name, value in known.items() if value]
    unset = [name for name, value in known.items() if not value]
    yield ok("environment", "; ".join([*shown, f"not set: {', '.join(unset)}"] if unset else shown))


def _without_secrets(name: str, value: str) -> str:
    if name == "HF_TOKEN":
        return "(set, not shown)"
    if name != "https_proxy":
        return value
    try:
        proxy = parse_proxy(value, name)
    except ConfigError:
        return "(set, and no HTTP proxy's address; not shown)"
    return f"http://{'(login, not shown)@' if proxy.authorization else ''}{proxy.address}"


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.resolve().parents) if path.is_dir())


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = _container_limit_bytes(), _number(Path("/sys/fs/cgroup/memory.current"))
    return available if limit is None or used is None else min(available, limit - used)


def _container_limit_bytes() -> int | None:
    return _number(Path("/sys/fs/cgroup/memory.max"))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
