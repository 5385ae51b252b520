"""Which release somebody needs, where two do not go together, in one line."""

from importlib.metadata import version

from fedlora.common.printable import printable

_LONGEST = 40


def own_version() -> str:
    """Return the version of fedlora at work here."""
    return version("fedlora")


def wheel_of(release: str) -> str:
    """Return what to install for a release, as people type it; another machine may have said which."""
    return f"pip install fedlora-{printable(release, most=_LONGEST)}-py3-none-any.whl"


def protocol_misfit(*, server: tuple[str, int], site: tuple[str, int]) -> str:
    """Return why server and site do not understand each other, and what to install where.

    Args:
        server, site: the version of fedlora that each has, and the number of its protocol.
    """
    (servers, servers_number), (sites, sites_number) = server, site
    found = (
        f"the server is fedlora {printable(servers, most=_LONGEST)} with protocol {servers_number}, the site fedlora "
        f"{printable(sites, most=_LONGEST)} with protocol {sites_number}"
    )
    if sites_number < servers_number:
        return f"{found}; at the site: {wheel_of(servers)}"
    return f"{found}; at the site: {wheel_of(servers)}; or at the server: {wheel_of(sites)}"
