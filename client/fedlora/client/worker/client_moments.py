"""An optimiser's moments about a client's round: those that it goes on with, and those that it leaves."""

import logging
from dataclasses import replace

from fedlora.adapters import Adapter
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import Moments
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, RunError
from fedlora.common.messages import TrainRequest
from fedlora.common.packed_file import packed_bytes
from fedlora.methods import Method
from fedlora.training.optimizer_state import MomentsFolder, of_others, without_factors
from fedlora.training.peft_bridge import ResidentModel
from fedlora.training.shared_moments import SharedMoments, shared_moments

logger = logging.getLogger(__name__)


class ClientMoments:
    """The moments as `train.optimizer_state` asks for them: kept here, shared by the federation, or none."""

    def __init__(self, config: RunConfig, folder: MomentsFolder | None, *, is_site: bool) -> None:
        """`folder` is where clients keep theirs; a site has its own, and the workers of a simulation one for all.

        Raises:
            ConfigError: they are to be kept, and there is no folder.
        """
        keeps = config.train.optimizer_state == "keep"
        if folder is None and keeps:
            raise ConfigError('train.optimizer_state = "keep" has no folder to keep it in here; set it to "reset"')
        self._config = config
        self._kept = folder if keeps else None
        self._is_site = is_site

    def shared(self, model: ResidentModel, adapter: Adapter, request: TrainRequest) -> SharedMoments | None:
        """Return what is shared of the optimiser in a round that trains the adapter, which is loaded; None for nothing.

        Raises:
            RunError: there are no moments of the federation, and the run needs them.
        """
        form = self._config.train.shared_moments
        if not form:
            return None
        if not request.moments and request.round > 1:
            raise RunError(
                f'round {request.round} came without the federation\'s moments, which train.optimizer_state = "shared" '
                'needs; set it to "reset" where the server does not send them'
            )
        tensors = to_state_dict(replace(adapter, base_change={}))
        return shared_moments(packed_bytes(request.moments), {key: tensors[key] for key in model.trained()}, form)

    def before(self, model: ResidentModel, client: str, request: TrainRequest, shared: SharedMoments | None) -> Moments:
        """Return the moments that the client's optimiser goes on with: the federation's, its own, or none."""
        if shared is not None:
            return shared.expanded(model.trained())
        if self._kept is None:
            return {}
        if request.round > 1 and not self._is_site and not self._kept.holds_any(request.run):
            logger.warning(
                "%s has no client's moments from before round %d, and optimisers start afresh: all machines of a run "
                "must see that folder",
                self._kept.folder,
                request.round,
            )
        kept, method = self._kept.before(request.run, client, request.round), self._config.aggregation
        has_new_pairs = isinstance(method, Method) and method.plan(request.round).starts_fresh
        return without_factors(kept) if has_new_pairs else kept

    def keep(
        self, model: ResidentModel, client: str, request: TrainRequest, *, before: Moments, after: Moments
    ) -> None:
        """Keep the moments after a round, of what it has not trained those from before, where the run asks for it."""
        if self._kept is not None:
            untouched = of_others(before, model.trained())
            self._kept.write(request.run, client, request.round, {**untouched, **after})
