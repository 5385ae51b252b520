"""A user's own task: one small class, which an installed package registers under a name.

    [project.entry-points."fedlora.tasks"]
    tone = "tone_task:Tone"

`[task] kind = "own", name = "tone"` in a run file then means it.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypeVar, cast

from torch import nn

from fedlora.common.config import OwnTask
from fedlora.common.errors import ConfigError, FedloraError, ModelError, one_line
from fedlora.models.checkpoint import Checkpoint
from fedlora.models.model_loading import BaseModel
from fedlora.training.tasks import Prepared, Task

GROUP = "fedlora.tasks"

P = TypeVar("P", bound=Prepared)


class TaskWithModel(Task[P], Protocol[P]):
    """What an entry point names: a class that is made with the checkpoint's folder and `task.settings`.

    Examples are rows of a table, as mappings, or pictures with labels, as `[data] path` has them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str | int | float | bool]) -> None: ...

    def load_model(self) -> tuple[nn.Module, Sequence[str]]:
        """Return the model, in float32 on the CPU, and the paths of its modules that are trained whole."""


def load_own_task(checkpoint: Checkpoint, section: OwnTask) -> BaseModel:
    """Return the model and the task that the entry point `section.name` gives.

    Raises:
        ConfigError: no installed package has such an entry point, or it cannot be imported.
        ModelError: the class cannot be made, or its model cannot be loaded.
    """
    found = entry_points(group=GROUP)
    if section.name not in found.names:
        installed = f"installed are {', '.join(sorted(found.names))}" if found.names else "none is installed"
        raise ConfigError(
            f"task.name: no task {section.name!r} ({installed}); a package declares one in its pyproject.toml, "
            f'under [project.entry-points."{GROUP}"]'
        )
    try:
        made = cast(type[TaskWithModel[Prepared]], found[section.name].load())
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"task.name: {section.name!r} cannot be imported ({one_line(error)})") from error
    try:
        task = made(checkpoint.folder, dict(section.settings))
        module, heads = task.load_model()
    except FedloraError:
        raise
    # It is a user's code: whatever it raises is theirs to read.
    except Exception as error:
        raise ModelError(f"task.name: {section.name!r} raised {type(error).__name__}: {one_line(error)}") from error
    return BaseModel(module, tuple(heads), task, None, checkpoint.fingerprint())
