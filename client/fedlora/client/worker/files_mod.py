"""A Flower mod for the worker of a site: adapters come as files and go as files, encoded for the wire.

The process that holds the connection moves files and needs no torch; the ClientApp sees bytes, as in a simulation.
A file of a global adapter is named by its sha256.
"""

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

DIFFERENCE = "difference"
_SETTINGS, _MAKING = "fedlora.files", "fedlora.difference"


def ask_for_file(
    message: Message, target: Path, *, precision: str, residual: Path | None = None, new_residual: Path | None = None
) -> None:
    """Have the answer's adapter written to `target`, as a difference to the one in `message`, if that has one.

    Args:
        precision: "float32", "bfloat16" or "int8".
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


def make_of_difference(message: Message, difference: Path, reference: Path) -> None:
    """Have the adapter of `message`, whose file is not there yet, made of a difference to another one."""
    message.content[_MAKING] = ConfigRecord({"difference": str(difference), "reference": str(reference)})


def adapters_as_files(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Read the request's adapter from its file, and write the answer's.

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
    given = adapter_in(message.content, with_files=True)
    if isinstance(given, PackedFile):
        making = message.content.config_records.get(_MAKING)
        try:
            if making is not None and not given.path.is_file():
                _make(given.path, Path(str(making["difference"])), Path(str(making["reference"])))
        except AdapterError as error:
            return Message(to_record(Failure(DIFFERENCE, str(error)), with_local=True), reply_to=message)
        put_adapter(message.content, given.path.read_bytes())
    reply = call_next(message, context)
    if settings is None or reply.has_error() or not (made := adapter_in(reply.content)):
        return reply
    target = Path(str(settings["target"]))
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


def _make(whole: Path, difference: Path, reference: Path) -> None:
    """Make the file `whole`, whose name is its sha256.

    Raises:
        AdapterError: it comes out as another.
    """
    decode_file(difference, whole, reference=reference, reference_sha256=reference.name)
    if (found := sha256_of([whole])) != whole.name:
        whole.unlink()
        raise AdapterError(f"the difference to {reference.name[:12]} gives {found[:12]}; expected {whole.name[:12]}")


def _path(name: object) -> Path | None:
    return Path(str(name)) if name else None
