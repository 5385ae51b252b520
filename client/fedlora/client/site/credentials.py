"""A site's credentials at each of its connections: what it has enrolled for, renewed in good time, or its own files."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedlora.client.site.identity import SiteIdentity
from fedlora.client.site.joining import credentials_of, enrol, renewed
from fedlora.common.channels import Credentials
from fedlora.common.errors import ConfigError, FedloraError
from fedlora.common.pem_files import PemFiles

logger = logging.getLogger(__name__)

_RENEWAL_PAUSE_SECONDS = 600.0


def identity_from(files: PemFiles) -> SiteIdentity:
    """Return the identity that the files of somebody's own authority make up.

    Raises:
        ConfigError: one cannot be read, or they do not belong together.
    """
    return SiteIdentity.external(files.ca, files.certificate, files.key, now=datetime.now(UTC))


def site_credentials(
    address: str, name: str, *, state: Path, token: str | None, files: PemFiles | None
) -> Callable[[], Credentials]:
    """Return what gives the site's credentials at each connection, once it is enrolled as `name`.

    Args:
        address: of the server, HOST:PORT.
        state: the site's folder, where what it has enrolled for is kept.
        token: of the invitation; it is needed the first time only.
        files: in place of all that, of an authority of one's own.

    Raises:
        ConfigError: the site is not enrolled yet and has no token, or is enrolled as another one.
        RunError: the server cannot be reached, is another one, or refuses.
    """
    if files is not None:
        credentials = _LastingCredentials(lambda: identity_from(files), renew=None)
    else:
        if token is not None:
            enrol(address, token, name=name, state=state)
        elif not SiteIdentity.exists(state):
            raise ConfigError(
                f"{state}: this site is not enrolled yet; ask the server's operator for an invitation, "
                "and give its token: --token - asks for it"
            )
        credentials = _LastingCredentials(
            lambda: SiteIdentity.load(state, address), renew=lambda identity: renewed(address, identity, state=state)
        )
    if (found := credentials.identity().name) != name:
        raise ConfigError(f"the certificate is for {found!r}, and the site file names {name!r}; make them agree")
    return credentials


class _LastingCredentials:
    """Credentials that are read at each connection, and renewed before they end, where that is ours to do."""

    def __init__(
        self, identity: Callable[[], SiteIdentity], *, renew: Callable[[SiteIdentity], SiteIdentity] | None
    ) -> None:
        self.identity = identity
        self._renew = renew
        self._tried = 0.0

    def __call__(self) -> Credentials:
        identity = self.identity()
        if identity.needs_renewal(datetime.now(UTC)) and time.monotonic() - self._tried > _RENEWAL_PAUSE_SECONDS:
            self._tried = time.monotonic()
            logger.warning("the certificate ends on %s", f"{identity.expiry:%Y-%m-%d %H:%M} UTC")
            if self._renew is not None:
                try:
                    identity = self._renew(identity)
                except FedloraError as error:
                    logger.warning("it could not be renewed yet: %s", error)
        return credentials_of(identity)
