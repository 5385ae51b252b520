"""The sites behind any of Flower's Grids: in this process, on Ray, at a SuperLink."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from flwr.serverapp import Grid

from fedlora.common.errors import RunError
from fedlora.common.messages import (
    WORKER_DIED,
    DescribeRequest,
    EvaluateRequest,
    Failure,
    SiteDescription,
    SumRequest,
    TrainRequest,
)
from fedlora.common.packed_file import Packed, packed_bytes
from fedlora.server.sites.contract import MAX_ATTEMPTS, Reply, Traffic
from fedlora.server.sites.questions import Questions

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.1


class ForgetfulGrid(Grid):
    """A Grid whose nodes keep nothing from one message to the next: each message carries all that it takes."""


class FlowerSites:
    """The sites of a Grid whose nodes are all there at the start and stay; nothing is acknowledged or counted."""

    are_fixed = True

    def __init__(self, grid: Grid, *, num_sites: int, nodes: Mapping[str, int] | None = None) -> None:
        """`num_sites` nodes are waited for, and asked for their names; `nodes` are those that are known by name."""
        self._grid = grid
        self._num_sites = num_sites
        self._nodes: dict[str, int] = dict(nodes or {})
        self._descriptions: dict[str, SiteDescription] = {}
        self._questions = Questions(with_files=False)

    @property
    def keep_adapters(self) -> bool:
        """Whether they would, in the deployment that a simulation stands for; those of a `ForgetfulGrid` do not."""
        return not isinstance(self._grid, ForgetfulGrid)

    def descriptions(self) -> Mapping[str, SiteDescription]:
        if not self._descriptions:
            self._descriptions = self._meet()
        return self._descriptions

    def remember(self, sites: Iterable[str]) -> None:
        pass

    def seconds_away(self) -> Mapping[str, float]:
        return dict.fromkeys(self._nodes, 0.0)

    def turn_away(self, site: str, code: str) -> None:
        raise RunError(f"{site} does not fit into the run: {code}")

    def ask(self, questions: Sequence[tuple[str, object]]) -> list[str]:
        # Nobody knows whether a node sees this machine's files.
        read = cache(packed_bytes)
        return self._push([(self._nodes[site], site, _with_bytes(request, read)) for site, request in questions])

    def replies(self, ids: Collection[str]) -> list[Reply]:
        began = time.monotonic()
        replies = [self._questions.read(message) for message in self._grid.pull_messages(list(ids))] if ids else []
        if ids and not replies:
            # Our Grid waits for a reply itself, Flower's answer at once.
            time.sleep(max(0.0, _POLL_SECONDS - (time.monotonic() - began)))
        return replies

    def acknowledge(self, id: str, refusal: str) -> None:
        pass

    def take_back(self, site: str, round: int, refusal: str) -> None:
        pass

    def withdraw(self, ids: Iterable[str]) -> None:
        self._questions.forget(ids)

    def traffic(self) -> Traffic | None:
        return None

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _push(self, questions: Sequence[tuple[int, str, object]]) -> list[str]:
        ids = self._grid.push_messages([self._questions.message(*question) for question in questions])
        return self._questions.sent(ids, [request for _, _, request in questions])

    def _meet(self) -> dict[str, SiteDescription]:
        """Return what the nodes say of themselves, by name, once so many are there.

        Raises:
            RunError: too few came, one could not answer, or two have one name.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(nodes := list(self._grid.get_node_ids())) < self._num_sites:
            if time.monotonic() > deadline:
                raise RunError(f"{len(nodes)} of {self._num_sites} clients have joined within {_WAIT_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        found: dict[str, SiteDescription] = {}
        asked: dict[str, tuple[int, int]] = {}

        def ask(node: int, attempt: int) -> None:
            (id,) = self._push([(node, f"node {node}", DescribeRequest())])
            asked[id] = node, attempt

        for node in nodes:
            ask(node, 0)
        while asked:
            for reply in self.replies(asked):
                node, attempt = asked.pop(reply.id)
                if isinstance(reply.content, Failure):
                    if reply.content.code != WORKER_DIED or attempt + 1 == MAX_ATTEMPTS:
                        raise RunError(reply.content.words(f"node {node}"))
                    logger.warning("node %d: %s; asking again", node, reply.content.text or reply.content.code)
                    ask(node, attempt + 1)
                    continue
                description: SiteDescription = reply.content
                if description.client in found:
                    raise RunError(f"two clients are named {description.client!r}; each needs a name of its own")
                found[description.client], self._nodes[description.client] = description, node
        return dict(sorted(found.items()))


def _with_bytes(request: object, read: Callable[[Packed], bytes]) -> object:
    """Return the request with its adapters' bytes in place of the files that hold them."""
    if isinstance(request, TrainRequest):
        adapter, former, moments = read(request.adapter), read(request.former), read(request.moments)
        return replace(request, adapter=adapter, former=former, moments=moments)
    if isinstance(request, EvaluateRequest | SumRequest):
        return replace(request, adapter=read(request.adapter))
    return request
