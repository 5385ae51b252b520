"""Which of its own examples a site judges for a server, and how often.

A server that chose them could compare two choices that differ in one example, and read that one's label. So the
choice is the site's: of its held-out examples as many as the run file says (`evaluation.round_examples`), of its
validation examples `evaluation.client_examples`, the same ones for every adapter, whatever a request asks for. What of
the run file changes the choice is written down, and another choice is not told of. For each round so many adapters are
judged, over all runs that this site's folder has seen.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.client.site.site_file import SiteConfig
from fedlora.common.codec import Codec
from fedlora.common.config import RunConfig
from fedlora.common.files import append_to_file
from fedlora.common.messages import EvaluateRequest, SiteDescription, TrainRequest

logger = logging.getLogger(__name__)

_VALIDATION, _HELD_OUT = "validation", "held-out"


@dataclass(frozen=True)
class _Judged:
    """An adapter that was judged for a round: by the choice of examples, and their kind."""

    choice: str
    part: str
    round: int
    adapter: str


_CODEC = Codec(_Judged)


class Judging:
    """What may be judged at this site in one run; what was judged is kept in a file."""

    def __init__(self, run: RunConfig, site: SiteConfig, description: SiteDescription, file: Path) -> None:
        limits = site.limits
        self._limits = limits
        self._file = file
        self._num_validation = min(run.evaluation.client_examples, limits.max_judged)
        self._num_held_out = min(run.evaluation.round_examples or limits.max_judged, limits.max_judged)
        self._num_generated = min(run.evaluation.generate, limits.max_judged)
        self._choice = _choice_of(run, site, description)
        self._judged = _read(file)

    def training(self, request: TrainRequest, adapter: str) -> tuple[TrainRequest, str]:
        """Return a request with this site's own number of validation examples, and why it is none, if it is."""
        num, why = self._num_validation, ""
        if num > 0 and (why := self._objection(_VALIDATION, request.round, adapter)):
            num = 0
        return replace(request, validation_examples=num), why

    def evaluation(self, request: EvaluateRequest, adapter: str) -> tuple[EvaluateRequest, str]:
        """Return a request for this site's own examples, and why nothing is judged, if nothing is."""
        num = self._num_validation if request.of_validation else self._num_held_out
        if request.num_shards != 1:
            return request, f"the server asks for a {request.num_shards}th part of the examples, which tells of a few"
        own = replace(
            request,
            num_examples=num,
            with_predictions=False,
            num_generated=self._num_generated if request.num_generated else 0,
        )
        return own, self._objection(_VALIDATION if request.of_validation else _HELD_OUT, request.round, adapter)

    def _objection(self, part: str, round: int, adapter: str) -> str:
        """Return why an adapter is not judged; where it is, that is on disk."""
        judged = _Judged(self._choice, part, round, adapter)
        if judged in self._judged:
            return ""
        choices = {known.choice for known in self._judged}
        if self._choice not in choices and len(choices) >= self._limits.samples:
            return (
                "this run would judge other examples than an earlier one did, and the two could be compared "
                f"(limits.samples = {self._limits.samples}); raise it if this server may"
            )
        of_round = [known for known in self._judged if replace(known, adapter=adapter) == judged]
        if len(of_round) >= self._limits.evaluations_per_round:
            return (
                f"{len(of_round)} adapters have been judged for round {round} "
                f"(limits.evaluations_per_round = {self._limits.evaluations_per_round})"
            )
        self._write(judged)
        self._judged.append(judged)
        return ""

    def _write(self, judged: _Judged) -> None:
        # A line that a crash cut off ends here.
        append_to_file(self._file, f"\n{_CODEC.dump(judged)}".encode())


def _choice_of(run: RunConfig, site: SiteConfig, description: SiteDescription) -> str:
    """Return a digest over all that decides which examples are judged."""
    told = {
        "seed": run.run.seed,
        "data_seed": run.data_seed,
        "task": run.task.model_dump(mode="json"),
        "data": run.data.model_dump(mode="json", exclude={"path"}),
        "own": site.data.model_dump(mode="json", exclude={"path"}),
        "content": description.data_fingerprint,
        "evaluation": run.evaluation.model_dump(
            mode="json", include={"round_examples", "client_examples", "generate", "max_new_tokens"}
        ),
        "tokens": dict(description.fingerprints),
        "most": site.limits.max_judged,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> list[_Judged]:
    """Return what was judged; a line that a crash cut off told nobody anything."""
    lines = path.read_text().split("\n") if path.is_file() else []
    found = []
    for line in filter(None, lines):
        try:
            found.append(_CODEC.load(line))
        except ValueError:
            logger.warning("%s: a line cannot be read, and is passed over", path)
    return found
