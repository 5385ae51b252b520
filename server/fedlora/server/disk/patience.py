"""Writing that waits where the disk is full, instead of ending the run."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from fedlora.common.errors import DiskFull

Arguments = ParamSpec("Arguments")
Written = TypeVar("Written")

WaitForSpace = Callable[[DiskFull], None]
"""Returns when it is worth another try; raises where nobody is to wait."""


class _Patient(Protocol):
    wait_for_space: WaitForSpace
    go_on: Callable[[], None]


Folder = TypeVar("Folder", bound=_Patient)


def give_up(error: DiskFull) -> NoReturn:
    """Do not wait.

    Raises:
        DiskFull: at once.
    """
    raise error


def wait_for_nothing() -> None:
    """Do nothing: nobody has waited."""


def patiently(
    write: Callable[Concatenate[Folder, Arguments], Written],
) -> Callable[Concatenate[Folder, Arguments], Written]:
    """Return a method that writes, and writes again from its begin until there is room for all of it.

    A folder that had to wait is told when it need not any more.
    """

    @wraps(write)
    def written(folder: Folder, /, *arguments: Arguments.args, **named: Arguments.kwargs) -> Written:
        has_waited = False
        while True:
            try:
                result = write(folder, *arguments, **named)
            except DiskFull as error:
                folder.wait_for_space(error)
                has_waited = True
            else:
                if has_waited:
                    folder.go_on()
                return result

    return written
