"""How many files and connections a process may have open, and what is said where it has that many."""

import errno
import resource

from fedlora.common.errors import FedloraError, StoreError

_MOST = 65_536


def raise_limit() -> int:
    """Return how many files and connections this process may have open, after raising that as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limit()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # Some systems have a lower one that they do not tell.
        return limit()
    return limit()


def limit() -> int:
    """Return how many files and connections this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else soft


def require_descriptors(error: OSError, *, kind: type[FedloraError] = StoreError) -> None:
    """Check that an error is not the want of descriptors, which is no fault of the file that it happened to.

    Raises:
        kind: it is.
    """
    if error.errno == errno.EMFILE:
        raise kind(
            f"this process has as many files and connections open as it may, {limit()}; raise the limit (ulimit -n), "
            "or look who connects"
        ) from error
    if error.errno == errno.ENFILE:
        raise kind("this machine has as many files open as it may; raise its limit (fs.file-max)") from error
