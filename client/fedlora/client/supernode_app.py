"""The door to Flower's own runtime: the ClientApp that a SuperNode starts, anew for every message.

The node config names the site file, and each message carries the run file. Base model and data are loaded for each
message. The site's own rules hold as they do in `site`.
"""

import logging
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MessageType
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fedlora.client.site.limits import allowed_evaluation, allowed_training, allows_base_model, data_lines
from fedlora.client.site.site_file import SiteConfig, for_site, is_quiet, load_site, state_folder
from fedlora.client.worker.source import OwnSite, WorkbenchSource
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, FedloraError, ModelError, RunError
from fedlora.common.messages import (
    INTERNAL,
    EvaluateReceipt,
    Failure,
    InitialiseReceipt,
    SiteDescription,
    TrainReceipt,
)
from fedlora.common.records import from_record, kind_of, to_record
from fedlora.common.run_file import parse_toml
from fedlora.common.run_folder import RUN_FILE
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

if TYPE_CHECKING:
    from fedlora.client.worker.workbench import Workbench

# Below Flower's own logger, which is what the SuperNode shows.
logger = logging.getLogger(f"flwr.{__name__}")

_ANSWERS = {
    kind.__name__: kind for kind in (SiteDescription, InitialiseReceipt, TrainReceipt, EvaluateReceipt, Failure)
}

app = ClientApp()  # Flower looks for this very assignment in the source.


class ForbiddenModelError(ModelError):
    """The run's base model is not in the site's `limits.base_models`."""

    code = "base_model_not_allowed"


@app.query("describe")
@app.query("initialise")
@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Return the answer to one message: a receipt, or a Failure's code; its text stays in this site's log."""
    try:
        receipt = _answer(message, context)
    except FedloraError as error:
        receipt = Failure(error.code, str(error)[:2000])
    except Exception as error:  # Flower would send the server its text.
        logger.exception("a message could not be answered; this is a bug in fedlora")
        receipt = Failure(INTERNAL, f"{type(error).__name__}: {error}"[:2000])
    if isinstance(receipt, Failure):
        logger.error("%s: %s", receipt.code, receipt.text)
        receipt = Failure(receipt.code)
    return Message(to_record(receipt), reply_to=message)


def _answer(message: Message, context: Context) -> object:
    path = _site_file(context.node_config)
    site, run = load_site(path), _run(message)
    is_training = message.metadata.message_type == MessageType.TRAIN
    if is_training and is_quiet(site.limits.quiet_hours, datetime.now().time()):
        return Failure("quiet_hours", f"limits.quiet_hours = {site.limits.quiet_hours}: no training now")
    if site.worker.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = site.worker.gpu
    spare_bitsandbytes()
    # Here, because it imports PEFT.
    from fedlora.client.worker.app import make_client_app

    work = make_client_app(lambda: _load(run, site, path), key=f"{path} {run!r}", explain_failures=True)
    # A SuperNode of a Flower project may have a partition-id; a site is not a partition.
    return _allowed(work(message, replace(context, node_config={})), site)


def _site_file(given: UserConfig) -> Path:
    path = given.get("site")
    if not isinstance(path, str):
        raise ConfigError("node config: site is missing; start the SuperNode with --node-config 'site=\"SITE.toml\"'")
    return Path(path)


def _run(message: Message) -> RunConfig:
    record = message.content.config_records.get(RUN_FILE)
    if record is None:
        raise RunError(f"the message carries no {RUN_FILE}; expected one of fedlora.server.superlink_app")
    return parse_toml(str(record[RUN_FILE]), origin="the server's run", aggregates_elsewhere=True)


def _load(run: RunConfig, site: SiteConfig, path: Path) -> "Workbench":
    """Return the workbench of this site.

    Raises:
        ForbiddenModelError: the site does not allow the run's base model.
    """
    own = OwnSite(site.site.name, site.data.only_group, site.limits.max_steps)
    source = WorkbenchSource(
        key=str(path),
        config=for_site(run, site, beside=path.parent),
        site=own,
        moments_folder=state_folder(path, site) / "optimizer",
    )
    workbench = source.load()
    fingerprint = workbench.describe(site.site.name).base_model_fingerprint
    if not allows_base_model(site.limits, name=run.model.name, fingerprint=fingerprint):
        raise ForbiddenModelError(f"base model {run.model.name} ({fingerprint}) is not in limits.base_models")
    return workbench


def _allowed(reply: Message, site: SiteConfig) -> object:
    """Return the workbench's answer without the numbers that the site keeps to itself."""
    receipt: object = from_record(reply.content, _ANSWERS[kind_of(reply.content)], with_local=True)
    match receipt:
        case SiteDescription():
            for line in data_lines(receipt):
                logger.warning("%s", line)
        case TrainReceipt():
            logger.info("round %d: trained %d steps, loss %.4g", receipt.round, receipt.num_steps, receipt.loss)
            return allowed_training(receipt, site.limits)
        case EvaluateReceipt():
            return allowed_evaluation(receipt, site.limits, site=site.site.name)
    return receipt
