"""The adapter that a run starts from: fresh from the run's seed, made by a site, or the one that the run names."""

from fedlora.adapters import Adapter, unpack
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
from fedlora.common.messages import Failure, InitialiseReceipt, InitialiseRequest
from fedlora.common.packed_file import Packed, packed_bytes
from fedlora.methods import Method
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.given_start import Room, given_start
from fedlora.server.rounds.inquiry import Addressed, Inquiry

_PATIENCE_SECONDS = 30.0  # Any site can give it.


def first_adapter(federation: Federation, config: RunConfig, method: Method) -> Adapter:
    """Return the adapter to start from.

    Where sites come and go, the next one is asked if one cannot answer.

    Raises:
        RunError: no site could give one, and nobody could come who is not there.
        AdapterError: the one that the run names does not fit it.
    """
    request = InitialiseRequest(config.run.seed)
    while True:
        reasons: list[str] = []
        for client in federation.available():
            asked = {client: Addressed(client, lambda _attempt: request)}
            inquiry = Inquiry(federation.link, asked, expected=InitialiseReceipt)
            answers = list(inquiry.answers(lambda asked: not set(asked) & set(federation.expected(_PATIENCE_SECONDS))))
            inquiry.withdraw()
            for answer in answers:
                if not isinstance(answer.content, Failure):
                    return _start_from(answer.content.adapter, config, method)
                reasons.append(answer.content.words(client))
        what = "no site could give the first adapter"
        federation.wait_for(what, seconds=2.0, hopeless=reasons[0] if reasons else what)


def _start_from(packed: Packed, config: RunConfig, method: Method) -> Adapter:
    fresh = unpack(packed_bytes(packed))
    given = config.federation.start_from
    if given is None:
        return fresh
    starts_fresh = method.plan(1).starts_fresh
    changes_base = method.changes_base or config.lora.init in BASE_CHANGING_INITS
    return given_start(given, like=fresh, room=Room(starts_fresh, starts_fresh or changes_base))
