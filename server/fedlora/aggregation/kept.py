"""The clients' pairs of one layer, kept between the passes over them as far as they fit."""

from collections.abc import Callable

from fedlora.adapters import LoraLayer

# 14 clients of a layer of 14,336 x 4,096 at rank 16, or 680 of one of 384 x 384 at rank 8. A server holds the whole
# global adapter several times over, beside which this is little.
KEPT_BYTES = 16 * 2**20


def kept(read: Callable[[str], LoraLayer], *, max_bytes: int) -> Callable[[str], LoraLayer]:
    """Return `read` that reads a client's layer once and keeps it, while all that is kept takes at most `max_bytes`.

    Those that come first are kept, and not those that came last: each pass takes the clients in the same order, so that
    the next one to come would never be among the last.
    """
    found: dict[str, LoraLayer] = {}
    left = max_bytes

    def read_once(client: str) -> LoraLayer:
        nonlocal left
        if client in found:
            return found[client]
        layer = read(client)
        size = sum(tensor.nbytes for tensor in layer.tensors())
        if size <= left:
            left -= size
            found[client] = layer
        return layer

    return read_once
