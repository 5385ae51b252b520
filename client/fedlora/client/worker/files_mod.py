"""A Flower mod for the worker of a site: adapters come as files and go as files, encoded for the wire.

The process that holds the connection moves files and needs no torch; the ClientApp sees bytes, as in a simulation.
A file of a global adapter is named by its sha256.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedlora.adapters.differences import decode_file, encode_file
from fedlora.common.errors import AdapterError, StoreError
from fedlora.common.files import sha256_of
from fedlora.common.messages import Failure
from fedlora.common.packed_file import PackedFile
from fedlora.common.records import adapter_in, put_adapter, to_record
from fedlora.common.schema import ADAPTER, PACKED

DIFFERENCE = "difference"
_RAW = "raw"
_SETTINGS, _MAKINGS = "fedlora.files", "fedlora.differences"


@dataclass(frozen=True)
class Making:
    """A file that is not there yet, and the difference and the reference that it is made of."""

    whole: Path
    difference: Path
    reference: Path


def ask_for_file(
    message: Message, target: Path, *, precision: str, residual: Path | None = None, new_residual: Path | None = None
) -> None:
    """Have the answer's adapter written to `target`, as a difference to the one in `message`, if that has one.

    Args:
        precision: "float32", "bfloat16" or "int8"; "raw" for what is no adapter, and stays as it is.
        residual, new_residual: what the last rounding took, and where to write what this one takes.
    """
    message.content[_SETTINGS] = ConfigRecord(
        {
            "target": str(target),
            "precision": precision,
            "residual": str(residual or ""),
            "new_residual": str(new_residual or ""),
        }
    )


def make_of_differences(message: Message, makings: Sequence[Making]) -> None:
    """Have adapters of `message` whose files are not there yet made, one after another."""
    paths = [str(path) for making in makings for path in (making.whole, making.difference, making.reference)]
    message.content[_MAKINGS] = ConfigRecord({"paths": paths})


def adapters_as_files(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Read the request's adapters from their files, and write the answer's.

    Where the disk will not have a file, such as a full one, the answer is a failure that says so.
    """
    try:
        return _over_files(message, context, call_next)
    except StoreError as error:
        failure = Failure(error.code, str(error))
    except OSError as error:
        what = error.filename or "an adapter's file"
        failure = Failure(StoreError.code, f"{what}: cannot be read or written ({error.strerror}); free some space")
    return Message(to_record(failure, with_local=True), reply_to=message)


def _over_files(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    settings = message.content.config_records.get(_SETTINGS)
    try:
        for making in _makings(message):
            if not making.whole.is_file():
                _make(making)
    except AdapterError as error:
        return Message(to_record(Failure(DIFFERENCE, str(error)), with_local=True), reply_to=message)
    files = {name: adapter_in(message.content, name=name, with_files=True) for name in PACKED}
    given = files[ADAPTER]
    for name, file in files.items():
        if isinstance(file, PackedFile):
            put_adapter(message.content, file.path.read_bytes(), name=name)
    reply = call_next(message, context)
    if settings is None or reply.has_error() or not (made := adapter_in(reply.content)):
        return reply
    target = Path(str(settings["target"]))
    if settings["precision"] == _RAW:
        target.write_bytes(cast(bytes, made))
        put_adapter(reply.content, PackedFile(target, target.stat().st_size))
        return reply
    packed = target.with_name(f"{target.name}.packed")
    try:
        packed.write_bytes(cast(bytes, made))  # Not synced: a crash here loses a training that was not finished.
        encode_file(
            packed,
            target,
            reference=given.path if isinstance(given, PackedFile) else None,
            precision=cast(Literal["float32", "bfloat16", "int8"], settings["precision"]),
            residual=_path(settings["residual"]),
            new_residual=_path(settings["new_residual"]),
        )
    finally:
        packed.unlink(missing_ok=True)
    put_adapter(reply.content, PackedFile(target, target.stat().st_size))
    return reply


def _makings(message: Message) -> list[Making]:
    record = message.content.config_records.get(_MAKINGS)
    paths = iter([] if record is None else map(Path, cast(list[str], record["paths"])))
    return [Making(*paths_of_one) for paths_of_one in zip(paths, paths, paths, strict=True)]


def _make(making: Making) -> None:
    """Make the file `whole`, whose name is its sha256.

    Raises:
        AdapterError: it comes out as another.
    """
    whole, reference = making.whole, making.reference
    decode_file(making.difference, whole, reference=reference, reference_sha256=reference.name)
    if (found := sha256_of([whole])) != whole.name:
        whole.unlink()
        raise AdapterError(f"the difference to {reference.name[:12]} gives {found[:12]}; expected {whole.name[:12]}")


def _path(name: object) -> Path | None:
    return Path(str(name)) if name else None
