"""The door to Flower's own runtime: the ServerApp that `flwr run` starts at a SuperLink.

Its run config names the run file and the run's folder on the server's machine. A SuperNode starts a process for every
message, and that process remembers nothing: so each message carries the run file, beside what it asks for.
"""

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid, ServerApp

from fedlora.common.config import Occasion, RunConfig, idle_settings
from fedlora.common.errors import ConfigError
from fedlora.common.flower_privates import Run as FlowerRun
from fedlora.common.records import from_peer
from fedlora.common.run_file import load_run, require_labels, to_toml
from fedlora.common.run_folder import RUN_FILE
from fedlora.server.record.events import Event, Noted, RoundEnded, RunStarted, SitesDescribed, UpdateArrived
from fedlora.server.report.data_notes import data_notes
from fedlora.server.report.shares import cap_lines
from fedlora.server.sites import ForgetfulGrid
from fedlora.server.whole_run import Run, whole_run
from fedlora.v1 import messages_pb2

# Below Flower's own logger, which is what this process and `flwr log` show.
logger = logging.getLogger(f"flwr.{__name__}")

app = ServerApp()  # Flower looks for this very assignment in the source.


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do the rounds that are left of the run that the run config names.

    Raises:
        FedloraError: the run cannot be started or cannot go on; Flower shows it as the run's status.
    """
    run_file, out = _path(context.run_config, "run"), _path(context.run_config, "out")
    config = load_run(run_file)
    require_labels(config, origin=str(run_file))
    if config.privacy.secure_sums:
        raise ConfigError(
            f"{run_file}: privacy.secure_sums needs sites that know each other's certificates, which a SuperLink does "
            "not show them; run it over fedlora server start, or set it to false"
        )
    run = Run(
        config,
        out,
        num_sites=config.federation.sites,
        # Not the process's own arguments, which hold Flower's token.
        command=f'flwr run --run-config \'run="{run_file}" out="{out}"\'',
        notes=idle_settings(config, Occasion("superlink")),
    )
    whole_run(run, lambda rounds: rounds.server_app()(RunCarryingGrid(grid, config), context), shown=nullcontext(_tell))


class RunCarryingGrid(ForgetfulGrid):
    """Another Grid, each of whose messages also carries the run file.

    Its nodes are other owners' machines: of what is local nothing is taken from them, and what the run fixes is put in.
    """

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid = grid
        self._known = messages_pb2.SiteDescription(labels=config.data.labels, base_model=config.model.name)
        self._run_toml = to_toml(config, comments=False)

    def set_run(self, run: FlowerRun) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages([self._carrying_run(message) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return map(self._from_site, self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        carrying = [self._carrying_run(message) for message in messages]
        return map(self._from_site, self._grid.send_and_receive(carrying, timeout=timeout))

    def _carrying_run(self, message: Message) -> Message:
        message.content[RUN_FILE] = ConfigRecord({RUN_FILE: self._run_toml})
        return message

    def _from_site(self, message: Message) -> Message:
        if not message.has_error():
            message.content = from_peer(message.content, known=self._known)
        return message


def _path(given: UserConfig, key: str) -> Path:
    """Return the absolute path that a key of the run config names."""
    value = given.get(key)
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.is_absolute():
        # The working directory is the SuperLink's, which whoever types `flwr run` does not know.
        raise ConfigError(
            f"run config: {key} is {value!r}; expected an absolute path on the server's machine: "
            """flwr run APP --run-config 'run="/path/run.toml" out="/path/folder"'"""
        )
    return path


def _tell(event: Event) -> None:
    """Log what an operator cares about."""
    match event:
        case Noted(lines=lines):
            for line in lines:
                logger.warning("%s", line)
        case SitesDescribed(sites=sites):
            for line in data_notes(sites):
                logger.warning("%s", line)
        case RunStarted():
            logger.info("%s take part; next is round %d", ", ".join(event.clients), event.next_round)
        case UpdateArrived(reason=reason) if reason:
            logger.warning("round %d: the update of %s was refused: %s", event.round, event.client, reason)
        case RoundEnded(report=report):
            for line in cap_lines(report):
                logger.warning("round %d: capped %s", report.round, line)
            scored = "" if report.held_out is None else f", metric {report.held_out.overall.metric:.4f}"
            logger.info("round %d: %d updates%s", report.round, len(report.clients), scored)
