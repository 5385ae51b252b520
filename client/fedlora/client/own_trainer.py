"""A script with a Hugging Face `Trainer`, or TRL's `SFTTrainer`, as a site of a federation. Public.

    from fedlora.client.own_trainer import join

    def make_trainer(client, run):
        ...
        return Trainer(model=..., args=..., train_dataset=..., data_collator=...)

    if __name__ == "__main__":  # the trainer trains in a process of its own, which imports this script
        join("fed.example.org:8470", make_trainer, site="north.toml", token="fl1-...")

The connection stays in the calling process, and is kept while the other one trains.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.client.site.before_enrolling import check_before_enrolling
from fedlora.client.site.site_file import load_site, state_folder
from fedlora.client.site.taking_part import hold_and_take_part
from fedlora.client.worker.importable import require_importable
from fedlora.client.worker.process import is_starting_worker
from fedlora.common.addresses import require_loopback, split_address
from fedlora.common.certificates import parse_token
from fedlora.common.errors import ConfigError, RunError
from fedlora.common.pem_files import PemFiles

if TYPE_CHECKING:
    from fedlora.training.own_trainer.made import MakeTrainer

_TOKEN_VARIABLE = "FEDLORA_TOKEN"


def join(
    address: str,
    make_trainer: "MakeTrainer",
    *,
    site: str | Path,
    token: str | None = None,
    files: PemFiles | None = None,
    insecure: bool = False,
) -> None:
    """Take part until the run is over, with a trainer of one's own; the same call goes on after a crash.

    Args:
        address: of the server, HOST:PORT.
        make_trainer: returns the site's `transformers.Trainer`, from the site's name and the run; see
            `training.own_trainer`. It is a function of a script or module: the process that trains imports it.
        site: the site file: its name, its limits, and where the base model lies; without `[data]`.
        token: from the invitation, for the first time; without it that in the variable FEDLORA_TOKEN, if there is one.
        files: certificates of a PKI of one's own.
        insecure: plain text without certificates, on loopback alone.

    Raises:
        FedloraError: what the user gave cannot work, or the server does not let this site in; one clear message.
    """
    if is_starting_worker():
        raise RunError(
            "a site's worker imports this script to make the trainer, and came by a call of join; put that under: "
            'if __name__ == "__main__":'
        )
    require_importable(make_trainer)
    # What it says, we say ourselves. Read when grpc first opens a channel.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    path = Path(site)
    config = load_site(path, needs_data=False)
    for is_set, key in (
        (not config.brings_trainer, "[data]"),
        ("device" in config.worker.model_fields_set, "worker.device"),
    ):
        if is_set:
            raise ConfigError(f"{path}: {key} is set, and the trainer decides on that; remove it")
    split_address(address)
    if insecure:
        require_loopback(address)
    elif files is None and (token := token or os.environ.get(_TOKEN_VARIABLE)) is not None:
        parse_token(token)
        check_before_enrolling(config, beside=path.parent)
    hold_and_take_part(
        address, config, beside=path.parent, folder=state_folder(path, config), token=token, files=files,
        is_insecure=insecure, make_trainer=make_trainer,
    )  # fmt: skip
