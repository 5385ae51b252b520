"""The door to Flower's own runtime: the ClientApp that a SuperNode starts, anew for every message.

The node config names the site file, and each message carries the run file. Base model and data are loaded for each
message. The site's own rules hold as they do in `site`.
"""

import hashlib
import logging
import os
import uuid
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MessageType
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fedlora.client.site.judging import Judging
from fedlora.client.site.limits import WITHHELD, allowed_evaluation, allowed_training, data_lines, own_site
from fedlora.client.site.limits_section import is_quiet
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.site_file import SiteConfig, for_site, load_site, state_folder
from fedlora.client.site.terms import objection_to, objection_to_what_was_loaded
from fedlora.client.worker.ledger import LEDGER_FOLDER
from fedlora.client.worker.source import WorkbenchSource
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, FedloraError, RunError
from fedlora.common.messages import (
    INTERNAL,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.records import adapter_in, carrying, from_record, kind_of, to_record
from fedlora.common.run_file import parse_toml
from fedlora.common.run_folder import RUN_FILE
from fedlora.common.schema import to_proto
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

if TYPE_CHECKING:
    from fedlora.client.worker.app import Bench

# Below Flower's own logger, which is what the SuperNode shows.
logger = logging.getLogger(f"flwr.{__name__}")

_ANSWERS = {
    kind.__name__: kind for kind in (SiteDescription, InitialiseReceipt, TrainReceipt, EvaluateReceipt, Failure)
}

app = ClientApp()  # Flower looks for this very assignment in the source.


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
        from fedlora.client.worker.app import failure_code

        if (code := failure_code(error)) == INTERNAL:
            logger.exception("a message could not be answered; this is a bug in fedlora")
        receipt = Failure(code, f"{type(error).__name__}: {error}"[:2000])
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
    if (objection := objection_to(run, site)) is not None:
        return Failure(objection.code, objection.line)
    if site.worker.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = site.worker.gpu
    spare_bitsandbytes()
    # Here, because it imports PEFT.
    from fedlora.client.worker.app import make_client_app

    workbench = _load(run, site, path)
    description = workbench.describe(site.site.name)
    if (objection := objection_to_what_was_loaded(run, site, description)) is not None:
        return Failure(objection.code, objection.line)
    judged_file = Outbox(state_folder(path, site)).judged_file
    judged_file.parent.mkdir(parents=True, exist_ok=True)
    withheld = _make_own(message, Judging(run, site, description, judged_file))
    if withheld and not is_training:
        return Failure(WITHHELD, withheld)
    work = make_client_app(lambda: workbench, key=uuid.uuid4().hex, explain_failures=True)
    # A SuperNode of a Flower project may have a partition-id; a site is not a partition.
    return _allowed(work(message, replace(context, node_config={})), run, site, objection=withheld)


def _make_own(message: Message, judging: Judging) -> str:
    """Let a request be for examples of the site's own choice, and return why none are judged, if none are."""
    own: TrainRequest | EvaluateRequest
    adapter = adapter_in(message.content)
    digest = hashlib.sha256(adapter if isinstance(adapter, bytes) else b"").hexdigest()
    match kind_of(message.content):
        case TrainRequest.__name__:
            own, withheld = judging.training(from_record(message.content, TrainRequest), digest)
        case EvaluateRequest.__name__:
            own, withheld = judging.evaluation(from_record(message.content, EvaluateRequest), digest)
        case _:
            return ""
    message.content.update(carrying(to_proto(own)))
    return withheld


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


def _load(run: RunConfig, site: SiteConfig, path: Path) -> "Bench":
    """Return the workbench of this site."""
    source = WorkbenchSource(
        key=str(path),
        config=for_site(run, site, beside=path.parent),
        site=own_site(run, site),
        moments_folder=state_folder(path, site) / "optimizer",
        ledger_folder=state_folder(path, site) / LEDGER_FOLDER,
    )
    return source.load()


def _allowed(reply: Message, run: RunConfig, site: SiteConfig, *, objection: str) -> object:
    """Return the workbench's answer without the numbers that the site keeps to itself."""
    receipt: object = from_record(reply.content, _ANSWERS[kind_of(reply.content)], with_local=True)
    match receipt:
        case SiteDescription():
            for line in data_lines(receipt):
                logger.warning("%s", line)
        case TrainReceipt():
            logger.info("round %d: trained %d steps, loss %.4g", receipt.round, receipt.num_steps, receipt.loss)
            return allowed_training(receipt, site.limits, run, objection=objection)
        case EvaluateReceipt():
            return allowed_evaluation(receipt, site.limits, run, site=site.site.name)
    return receipt
