"""Layer paths sorted into the modules that repeat through a model's blocks. Pure."""

from collections.abc import Iterable, Mapping

Modules = Mapping[str, Mapping[str, int]]


def by_module(paths: Iterable[str]) -> Modules:
    """Return layer paths by module, with each one's block.

    `encoder.layer.3.attention.query` is block 3 of the module `query`: the first number in a path counts the
    blocks, and the module is named by as few of the words behind it as tell it from the others. Paths without a
    number are counted in their order.
    """
    split = {path: _split(path) for path in paths}
    suffixes = {suffix for suffix, _ in split.values()}
    names = {suffix: _short_name(suffix, suffixes) for suffix in suffixes}
    modules: dict[str, dict[str, int]] = {}
    for path, (suffix, block) in split.items():
        module = modules.setdefault(names[suffix], {})
        module[path] = len(module) if block is None else block
    return modules


def _split(path: str) -> tuple[tuple[str, ...], int | None]:
    """Return the words behind the block's number, without further numbers, and that number."""
    parts = path.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if at is None:
        return (parts[-1],), None
    words = [part for part in parts[at + 1 :] if not part.isdecimal()] or parts[at - 1 : at] or parts
    return tuple(words), int(parts[at])


def _short_name(suffix: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> str:
    for length in range(1, len(suffix)):
        if sum(other[-length:] == suffix[-length:] for other in others) == 1:
            return ".".join(suffix[-length:])
    return ".".join(suffix)
