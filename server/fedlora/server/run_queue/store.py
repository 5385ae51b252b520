"""A server's store: the folder of many runs, one identity and one port.

    STORE/queue.json          the runs, in their order
    STORE/runs/NAME-HASH/     a run's folder
    STORE/identity/           the authority and the sites' records
    STORE/server.json         who serves it, and where; of the last server
    STORE/audit.jsonl         who was invited, enrolled and turned away
    STORE/version.json        of the folder's form, see `folder_version`
    STORE/.lock               held by the server
    STORE/.queue.lock         held by who changes the queue

Whoever may write to the folder submits and stops runs, whether a server is at work there or not, also from another
container on the same volume: no socket is asked, and what is in the queue outlives every process.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.files import TEMPORARY_SUFFIX, client_file_name, write_file
from fedlora.common.folder_version import RUN_FOLDER, STORE_FOLDER, VERSION_FILE, version_of
from fedlora.common.locks import held, is_held
from fedlora.common.parsing import json_in
from fedlora.common.run_file import parse_toml, require_labels, to_toml
from fedlora.common.run_folder import AUDIT_FILE, IDENTITY_FOLDER, LOCK_FILE, RUN_FILE, STATUS_FILE, STOP_FILE
from fedlora.server.disk.prolonging import changes
from fedlora.server.disk.recorded_identity import recorded_identity
from fedlora.server.disk.recorded_rounds import recorded_rounds
from fedlora.server.run_method import method_of
from fedlora.server.run_queue.queue import CODEC, QueuedRun, RunQueue

QUEUE_FILE, SERVER_FILE = "queue.json", "server.json"
_QUEUE_LOCK, _RUNS = ".queue.lock", "runs"


class RunStore:
    """The folder of a server's runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def opened(cls, folder: Path) -> "RunStore":
        """Return the store in a folder, made if there is none.

        Raises:
            StoreError: the folder holds something else, or cannot be used.
        """
        if is_store(folder):
            return cls.existing(folder)
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"--store {folder} is a file; expected a folder of its own for a server's runs")
        # A store whose queue was moved away has all the rest.
        ours = (QUEUE_FILE, SERVER_FILE, IDENTITY_FOLDER, LOCK_FILE, VERSION_FILE, AUDIT_FILE, STOP_FILE, _QUEUE_LOCK,
                _RUNS)  # fmt: skip
        try:
            if folder.is_dir() and any(
                entry.name.removesuffix(TEMPORARY_SUFFIX) not in ours for entry in folder.iterdir()
            ):
                what = "is the folder of a run" if (folder / RUN_FILE).is_file() else "holds something else"
                raise StoreError(f"--store {folder} {what}; expected a folder of its own for a server's runs")
        except OSError as error:
            raise StoreError(f"--store {folder}: cannot be read ({error.strerror}); choose another folder") from error
        version_of(folder, STORE_FOLDER)
        store = cls(folder)
        store.change(lambda queue: queue)
        return store

    @classmethod
    def existing(cls, folder: Path) -> "RunStore":
        """Return the store that is in a folder.

        Raises:
            StoreError: there is none, or a newer version's.
        """
        if not is_store(folder):
            raise StoreError(f"{folder} is no store of runs; expected the folder given to fedlora server start --store")
        version_of(folder, STORE_FOLDER)
        return cls(folder)

    def run_folder(self, name: str) -> Path:
        """Return where a run is kept."""
        return self.folder / _RUNS / client_file_name(name)

    def queue(self) -> RunQueue:
        """Return the runs as they are.

        Raises:
            StoreError: the file is damaged, or cannot be read.
        """
        path = self.folder / QUEUE_FILE
        try:
            return CODEC.load(path.read_bytes())
        except FileNotFoundError:
            return RunQueue()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged; restore it, or move it away: runs keep their folders, and go on once they are "
                "submitted again"
            ) from error

    def change(self, how: Callable[[RunQueue], RunQueue]) -> RunQueue:
        """Return the queue after a change, which is written; nobody else changes it meanwhile.

        Raises:
            StoreError: it cannot be read or written; it is as it was.
        """
        with held(self.folder / _QUEUE_LOCK):
            queue = self.queue()
            if (changed := how(queue)) != queue or not (self.folder / QUEUE_FILE).exists():
                write_file(self.folder / QUEUE_FILE, CODEC.dump(changed) + "\n")
            return changed

    def submit(self, config: RunConfig) -> tuple[RunQueue, tuple[str, ...]]:
        """Put a run at the end of the queue, or one that is over that is to go on.

        Returns:
            The queue with it, and what changes in one that goes on, in a line each.

        Raises:
            ConfigError: it cannot be served, or one of its name is in the queue.
            StoreError: one of its name is over and was another, has nothing left to do, or is a newer version's.
        """
        require_labels(config)
        method_of(config)
        folder = self.run_folder(config.run.name)
        lines: tuple[str, ...] = ()
        version_of(folder, RUN_FOLDER)
        if (folder / RUN_FILE).is_file():
            recorded = parse_toml((folder / RUN_FILE).read_text(), origin=str(folder / RUN_FILE))
            lines = changes(folder, recorded, config)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        run = QueuedRun(config.run.name, to_toml(config, comments=False), now)

        def submitted(queue: RunQueue) -> RunQueue:
            for known in queue.runs:
                if known.name == run.name and known.state == "finished" and not lines:
                    raise ConfigError(
                        f"{run.name} is finished; give this run another name (--set run.name=...), or more rounds "
                        "(--set federation.rounds=...)"
                    )
            return queue.submitted(run)

        return self.change(submitted), lines

    @property
    def is_served(self) -> bool:
        """Whether a server is at work on it."""
        return is_held(self.folder / LOCK_FILE)

    def write_server(self, *, address: str, identity: Path | None) -> None:
        """Note who serves the store, and where."""
        content = {
            "address": address,
            "identity": recorded_identity(self.folder, identity),
            "pid": os.getpid(),
            "version": version("fedlora"),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_file(self.folder / SERVER_FILE, json.dumps(content, indent=2) + "\n")

    def server(self) -> dict[str, object]:
        """Return what the last server has noted; nothing before the first."""
        try:
            found = json_in((self.folder / SERVER_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def is_store(folder: Path) -> bool:
    """Return whether a folder is a store of runs."""
    return (folder / QUEUE_FILE).is_file() and not (folder / STATUS_FILE).exists()


def is_in_store(folder: Path) -> bool:
    """Return whether a run's folder is one of a store's."""
    return folder.parent.name == _RUNS and is_store(folder.parent.parent)


def last_round(folder: Path) -> int:
    """Return the last round of a run that is over, 0 before the first."""
    return max((report.round for report in recorded_rounds(folder)), default=0)


def config_of(run: QueuedRun) -> RunConfig:
    """Return the run file of a run in a queue.

    Raises:
        ConfigError: it was made by another version, which knows other keys.
    """
    return parse_toml(run.run_toml, origin=f"the run {run.name} in the queue")
