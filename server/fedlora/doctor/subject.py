"""What is examined: this machine for a site, for a run, for a server's folder, or as it is."""

from dataclasses import dataclass
from pathlib import Path

from fedlora.client.site.site_file import SiteConfig, load_site, state_folder
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.parsing import toml_in
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import RUN_FILE


@dataclass(frozen=True)
class Subject:
    """What was named on the command line.

    Attributes:
        path: as it was named; None where nothing was.
        run: a run file's content, or that of a run's folder.
        folder: a run's folder.
        site: a site file's content.
    """

    path: Path | None = None
    run: RunConfig | None = None
    folder: Path | None = None
    site: SiteConfig | None = None

    @property
    def state(self) -> Path | None:
        """The folder of a site's key and certificate."""
        return None if self.path is None or self.site is None else state_folder(self.path, self.site)

    @property
    def device(self) -> str:
        """Where training is wanted: auto, cpu, cuda or mps."""
        if self.site is not None:
            return self.site.worker.device
        return "auto" if self.run is None else self.run.train.device

    @property
    def quantization(self) -> str:
        """How the run's base weights are quantised; "none" where no run was named."""
        return "none" if self.run is None else self.run.model.quantization


def subject_of(path: Path | None) -> Subject:
    """Return what `path` is: a site file has [site], any other TOML file is a run's, and a folder holds a run.

    Raises:
        ConfigError: it cannot be read, or has a wrong key or value; one line for each.
    """
    if path is None:
        return Subject()
    if path.is_dir():
        if not (path / RUN_FILE).is_file():
            raise ConfigError(f"{path}: no {RUN_FILE}; expected a run's folder, a run file or a site file")
        return Subject(path, run=load_run(path / RUN_FILE, aggregates_elsewhere=True), folder=path)
    if _is_site(path):
        return Subject(path, site=load_site(path, needs_data=False))
    return Subject(path, run=load_run(path))


def _is_site(path: Path) -> bool:
    try:
        return "site" in toml_in(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False  # load_run says what is wrong
