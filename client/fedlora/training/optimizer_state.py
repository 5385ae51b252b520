"""An optimiser's moments, which a client may keep from round to round: as values, and in a file of its own."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedlora.adapters.keys import factor_of
from fedlora.adapters.moments import Moments, moment_key, owner_and_name
from fedlora.common.files import client_file_name, write_file

logger = logging.getLogger(__name__)

# A server that finds its last round damaged does it again, when clients have done the one after it too.
_KEPT_ROUNDS = 3
# A site takes part in run after run, and a run that is over is hardly ever prolonged.
_KEPT_RUNS = 8


class MomentsFolder:
    """The moments of each client of a run, after each of its last three rounds; of the eight runs that were last here.

    A round that is done again, because the one who asked for it was killed, starts from the same moments.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds_any(self, run: str) -> bool:
        """Return whether any client's moments of a run are here."""
        return (self.folder / run).is_dir()

    def before(self, run: str, client: str, number: int) -> Moments:
        """Return the newest moments of a client from before round `number`, none in its first.

        What is damaged is passed over.
        """
        folder = self._of_client(run, client)
        for found in sorted(_rounds(folder), reverse=True):
            if found < number:
                try:
                    return load(_file(folder, found).read_bytes())
                except (OSError, SafetensorError) as error:
                    logger.warning("%s cannot be read, and older moments are taken (%s)", _file(folder, found), error)
        return {}

    def write(self, run: str, client: str, number: int, moments: Moments) -> None:
        """Record the moments after round `number`, and forget those that no repeated round can need.

        Those of later rounds go first: the run has gone back behind them.
        """
        if not self.holds_any(run):
            self._forget_old_runs()
        folder = self._of_client(run, client)
        rounds = sorted(_rounds(folder))
        for abandoned in (found for found in rounds if found > number):
            _file(folder, abandoned).unlink(missing_ok=True)
        write_file(_file(folder, number), save(dict(moments)))
        for old in sorted({found for found in rounds if found <= number} | {number})[:-_KEPT_ROUNDS]:
            _file(folder, old).unlink(missing_ok=True)

    def _forget_old_runs(self) -> None:
        """Make place for one run more."""
        runs = {path: _last_written(path) for path in self.folder.iterdir()} if self.folder.is_dir() else {}
        for path in sorted(runs, key=runs.__getitem__, reverse=True)[_KEPT_RUNS - 1 :]:
            logger.info("the optimiser's moments of a former run are removed: %s", path)
            shutil.rmtree(path, ignore_errors=True)

    def _of_client(self, run: str, client: str) -> Path:
        return self.folder / run / client_file_name(client)


def _last_written(run: Path) -> int:
    return max((path.stat().st_mtime_ns for path in run.glob("*/*.safetensors")), default=0)


def _rounds(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdecimal()]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def read_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return a copy of the optimiser's moments on the CPU, for the parameters that it has any of."""
    return {
        moment_key(name, key): torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def of_others(moments: Moments, parameters: Mapping[str, nn.Parameter]) -> Moments:
    """Return the moments but for those of `parameters`: what a round does not train keeps its own."""
    return {key: value for key, value in moments.items() if owner_and_name(key)[0] not in parameters}


def without_factors(moments: Moments) -> Moments:
    """Return the moments but for those of A and B, which are another pair's where a round starts from new ones."""
    return {key: value for key, value in moments.items() if not factor_of(owner_and_name(key)[0])}


def set_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: Moments) -> None:
    """Make the optimiser go on with `moments`, but for those of tensors that it does not train or of other shapes."""
    for key, value in moments.items():
        name, moment = owner_and_name(key)
        parameter = parameters.get(name)
        if parameter is None or not (value.ndim == 0 or value.shape == parameter.shape):
            continue
        # The count of steps stays on the CPU, except in the fused optimiser on a GPU, which wants it there.
        optimizer.state[parameter][moment] = value.to(parameter.device, copy=True)
