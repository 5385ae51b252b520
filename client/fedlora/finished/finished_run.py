"""A finished run in its folder, as far as its model is needed: which adapter, on which base model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedlora.adapters.peft_format import CONFIG_FILE
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, ModelError, StoreError
from fedlora.common.folder_version import RUN_FOLDER, version_of
from fedlora.common.parsing import json_in
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import ADAPTER_FOLDER, BEST_FOLDER, MANIFEST_FILE, RUN_FILE

Choice = Literal["newest", "best"]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has finished a round.

    Attributes:
        folder: the run's.
        adapter_folder: the PEFT folder that was chosen in it.
        config: the run.
        labels: the vocabulary, in the order of the logits; () where the task has none.
        fingerprint: of the base model that the adapter was trained on.
    """

    folder: Path
    adapter_folder: Path
    config: RunConfig
    labels: tuple[str, ...]
    fingerprint: str

    def unquantised(self) -> RunConfig:
        """Return the run with its base weights as the checkpoint has them, rounded to the run's dtype at most."""
        return self.config.model_copy(update={"model": self.config.model.model_copy(update={"quantization": "none"})})

    def require(self, found: str) -> None:
        """Check the fingerprint of the base model that was found.

        Raises:
            ModelError: it is another model than the adapter was trained on.
        """
        if found != self.fingerprint:
            raise ModelError(
                f"{self.folder}: the adapter was trained on another model than {self.config.model.name} is here "
                f"({self.fingerprint}, found {found}); restore the run's model"
            )


def open_finished(folder: str | Path, adapter: Choice = "newest") -> FinishedRun:
    """Return the run in `folder`, with its newest adapter, or the one of its best round.

    Raises:
        FedloraError: the folder holds no run with such an adapter, or is damaged.
    """
    folder = Path(folder)
    version_of(folder, RUN_FOLDER)
    chosen = folder / (BEST_FOLDER if adapter == "best" else ADAPTER_FOLDER)
    if not (chosen / CONFIG_FILE).is_file():
        if adapter == "best" and (folder / ADAPTER_FOLDER / CONFIG_FILE).is_file():
            raise AdapterError(
                f"{folder}: no {BEST_FOLDER}/{CONFIG_FILE}; a run keeps its best adapter where it has held-out or "
                "validation examples to judge by: take the newest"
            )
        raise AdapterError(
            f"{folder}: no {chosen.name}/{CONFIG_FILE}; expected the folder of a run with a finished round"
        )
    config = load_run(folder / RUN_FILE, aggregates_elsewhere=True)
    try:
        manifest = json_in((folder / MANIFEST_FILE).read_bytes())
        labels, fingerprint = tuple(map(str, manifest["labels"])), str(manifest["base_model"]["fingerprint"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{folder}/{MANIFEST_FILE} cannot be read ({error}); restore it") from error
    return FinishedRun(folder, chosen, config, labels, fingerprint)
