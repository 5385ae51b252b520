"""`fedlora adapters`: a server's finished adapters. What a verb needs is imported inside it, as in `main`."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import Json, print_json, print_json_line, print_json_list
from fedlora.cli.outputs import Downloaded, RolledBack

if TYPE_CHECKING:
    from fedlora.client.registry_client import Handle, RegistryClient
    from fedlora.common.channels import Credentials
    from fedlora.common.pem_files import PemFiles
    from fedlora.common.published import Published

adapters_app = typer.Typer(
    help="The finished adapters of a server: list them, fetch one, follow a run, or go back to an earlier one.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="The aggregation server.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="An adapter becomes the folder DIR/NAME-vNNNN.")]
MaxMegabytes = Annotated[
    int, typer.Option(metavar="N", min=1, help="A larger adapter, of millions of bytes, is not fetched.")
]
SiteOption = Annotated[
    Path | None, typer.Option("--site", metavar="SITE.toml", help="Come as this site, which has enrolled.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Plain text without certificates, to a server on this machine; needs --name.")
]
Name = Annotated[str, typer.Option(metavar="NAME", help="Who calls, with --insecure.")]
RunName = Annotated[
    str,
    typer.Option("--run", metavar="NAME", help="Of a server of many. Default: the one at work, or the last."),
]
Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM: an authority of your own; needs --cert and --key.")]
Cert = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM: the certificate from that authority.")]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="PEM: its key.")]


@dataclass(frozen=True)
class Caller:
    """Who calls which server: exactly one of a site file, a name in plain text, and three files of PEM."""

    address: str
    site: Path | None
    is_insecure: bool
    name: str
    files: tuple[Path | None, Path | None, Path | None]
    run: str = ""

    def connects(self) -> "Callable[[], AbstractContextManager[RegistryClient]]":
        """Return what makes a connection; it reads the certificate each time, for that may have been renewed.

        Raises:
            ConfigError: the options do not say who calls.
            StoreError: the site has not enrolled.
        """
        from fedlora.cli.pem_options import pem_files
        from fedlora.client.registry_client import connect
        from fedlora.common.addresses import split_address
        from fedlora.common.errors import ConfigError

        split_address(self.address)
        num_ways = sum([self.site is not None, self.is_insecure, any(self.files)])
        if num_ways != 1:
            raise ConfigError(
                f"{num_ways} ways to say who calls; expected one of --site SITE.toml, --ca with --cert and --key, "
                "or --insecure with --name on loopback"
            )
        if self.is_insecure != bool(self.name):
            raise ConfigError("--insecure and --name go together: without certificates, a caller says its name")
        files = pem_files(*self.files)
        self._credentials(files)
        return lambda: connect(self.address, self.name, self._credentials(files), run=self.run)

    def _credentials(self, files: "PemFiles | None") -> "Credentials | None":
        from fedlora.client.site.credentials import identity_from
        from fedlora.client.site.identity import SiteIdentity
        from fedlora.client.site.joining import credentials_of
        from fedlora.client.site.site_file import load_site, state_folder

        if self.site is not None:
            return credentials_of(
                SiteIdentity.load(state_folder(self.site, load_site(self.site, needs_data=False)), self.address)
            )
        return None if files is None else credentials_of(identity_from(files))


@adapters_app.command("list")
def list_adapters(
    address: Address,
    as_json: Json = False,
    site: SiteOption = None,
    insecure: Insecure = False,
    name: Name = "",
    run: RunName = "",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
) -> None:
    """List the adapters that a server keeps, newest first."""
    from fedlora.client.registry_client import as_run_errors

    connects = Caller(address, site, insecure, name, (ca, cert, key), run).connects()
    with as_run_errors(address), connects() as client:
        adapters = list(client.adapters())
    if as_json:
        print_json_list(adapters)
    elif adapters:
        _print_table(adapters)
    else:
        print("no adapter is published yet; the first one comes after round 1")


@adapters_app.command()
def download(
    address: Address,
    out: Out,
    adapter: Annotated[str, typer.Argument(metavar="[NAME|latest]", help="Such as digits-v0003.")] = "latest",
    max_megabytes: MaxMegabytes = 4000,
    site: SiteOption = None,
    insecure: Insecure = False,
    name: Name = "",
    run: RunName = "",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Fetch one adapter as a PEFT folder, and print where it is; a download that was cut off goes on."""
    from fedlora.client.registry_client import as_run_errors, chosen

    connects = Caller(address, site, insecure, name, (ca, cert, key), run).connects()
    with terminated_as_interrupted():
        try:
            with as_run_errors(address), connects() as client:
                found = chosen(client.adapters(), adapter)
                folder = client.download(found, out, most_bytes=max_megabytes * 10**6)
            if as_json:
                print_json(Downloaded(str(folder), found.name, found.version))
            else:
                print(folder)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(exit_status(interrupt)) from None


@adapters_app.command()
def watch(
    address: Address,
    out: Out,
    command: Annotated[
        str,
        typer.Option(
            "--exec",
            metavar="CMD",
            help="Run for each adapter, with its folder as the last argument; no shell. The environment has "
            "FEDLORA_ADAPTER (the folder), FEDLORA_NAME and FEDLORA_VERSION.",
        ),
    ] = "",
    max_megabytes: MaxMegabytes = 4000,
    site: SiteOption = None,
    insecure: Insecure = False,
    name: Name = "",
    run: RunName = "",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Fetch each adapter as it is published, until the run is over; so an inference server can follow a run."""
    from fedlora.cli.logs import Log, logging_to
    from fedlora.client.registry_client import watch as follow

    connects = Caller(address, site, insecure, name, (ca, cert, key), run).connects()
    handle = announcer(words_of(command), as_json=as_json)
    with logging_to(Log()), terminated_as_interrupted():
        try:
            follow(connects, out, handle, most_bytes=max_megabytes * 10**6)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(exit_status(interrupt)) from None


@adapters_app.command()
def rollback(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of the run's server, on this machine.")],
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="[VERSION]", help="Such as digits-v0003, or 3. Default: the one before the newest that is offered."
        ),
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Offer the newer adapters again.")] = False,
    as_json: Json = False,
) -> None:
    """Offer an earlier adapter in place of newer ones, until a better one is published or this is undone.

    Whoever watches gets it within seconds. The run trains on from its newest adapter.
    """
    from fedlora.common.errors import ConfigError
    from fedlora.server.disk.audit import AuditLog
    from fedlora.server.disk.published_folder import account_name, roll_back, undo_rollback

    if undo:
        if adapter:
            raise ConfigError(f"--undo offers all adapters again; leave out {adapter}")
        undo_rollback(out)
        AuditLog(out).append({"event": "rollback undone", "by": account_name()})
        if as_json:
            print_json(RolledBack(None, ()))
        else:
            print("all adapters are offered again")
        return
    done = roll_back(out, adapter or None)
    withdrawn = list(done.withdrawn)
    AuditLog(out).append({"event": "rolled back", "adapter": done.name, "withdrawn": withdrawn, "by": done.by})
    if as_json:
        print_json(RolledBack(done.name, tuple(withdrawn)))
        return
    versions = ", ".join(f"v{version:04d}" for version in withdrawn)
    print(
        f"{done.name} (round {done.round}) is offered in place of newer ones; withdrawn: {versions}\n"
        "until a better one is published, or: fedlora adapters rollback --undo --out "
        f"{shlex.quote(str(out))}"
    )


def words_of(command: str) -> list[str]:
    """Return the words of a command line; none of an empty one.

    Raises:
        ConfigError: its quotes do not close, or there is no such program.
    """
    import shutil

    from fedlora.common.errors import ConfigError

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--exec is {command!r}: {error}") from error
    if words and shutil.which(words[0]) is None:
        raise ConfigError(f"--exec: {words[0]} is no program here; look at the spelling, or give its path")
    return words


def announcer(words: Sequence[str], *, as_json: bool = False) -> "Handle":
    """Return what prints the folder of a new adapter, and runs a command for it, whose failure it reports."""
    import os
    import subprocess
    import sys

    def handle(folder: Path, published: "Published") -> None:
        path = str(folder.resolve())
        if as_json:
            print_json_line(Downloaded(path, published.name, published.version))
        else:
            print(path, flush=True)
        if not words:
            return
        told = {
            "FEDLORA_ADAPTER": path,
            "FEDLORA_NAME": published.name,
            "FEDLORA_VERSION": str(published.version),
        }
        try:
            status = subprocess.run([*words, path], env=os.environ | told, check=False).returncode
        except OSError as error:
            print(f"{published.name}: {words[0]} cannot be run ({error.strerror}); the watch goes on", file=sys.stderr)
            return
        if status != 0:
            print(f"{published.name}: {words[0]} ended with {status}; the watch goes on", file=sys.stderr)

    return handle


def _print_table(adapters: "Sequence[Published]") -> None:
    from datetime import datetime

    width = max(len("name"), *(len(published.name) for published in adapters))
    metric_name = adapters[0].metric_name or "metric"
    print(f"{'name':<{width}}  {'round':>5}  {metric_name:>10}  {'MB':>8}  published")
    for published in adapters:
        metric = "-" if published.metric is None else f"{published.metric:.4f}"
        when = datetime.fromtimestamp(published.published_seconds).astimezone()
        print(
            f"{published.name:<{width}}  {published.round:>5}  {metric:>10}  {published.size_bytes / 1e6:>8.2f}  "
            f"{when:%Y-%m-%d %H:%M:%S}"
        )
