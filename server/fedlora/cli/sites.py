"""`fedlora sites invite | list | revoke`. Heavy imports stay inside."""

import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.json_output import Json, print_json, print_json_list
from fedlora.cli.outputs import Invited, Said, SiteTold
from fedlora.cli.server_folder import authority_in, note_in, reached_at, run_in
from fedlora.cli.server_options import Identity, Out
from fedlora.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlora.server.identity.site_records import SiteRecord


sites_app = typer.Typer(help="Who may take part: invite sites, list them, revoke them.", no_args_is_help=True)


@sites_app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    out: Out,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run",
            metavar="NAME",
            help="A run it may take part in; may be repeated. Default: all of the folder's.",
        ),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="How long the token is good.")] = 24.0,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="How the site reaches the server, for the line to type. Default: where it listens, as far as known.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the token there, for this user's eyes alone, and do not print it."),
    ] = None,
    identity: Identity = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="With a PKI of your own: its authority. No token is needed then.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a site take part: print a token for it, good once, and the line to type there.

    A site that has enrolled keeps the runs that it may take part in; this adds to them.
    """
    from fedlora.common.addresses import split_address
    from fedlora.common.files import write_private_file

    if address is not None:
        split_address(address)
    names = tuple(runs or (run_in(out),))
    authority = authority_in(out, identity, ca)
    join = f"fedlora client join {address or reached_at(out)} --site SITE.toml"
    if authority.is_external:
        if token_file is not None:
            raise ConfigError("with a PKI of your own there is no token; leave out --token-file")
        authority.allow(name, names)
        note_in(out, {"event": "allowed", "site": name, "runs": list(names)})
        if as_json:
            print_json(Invited(name, names, None, None, None, f"{join} --ca CA.pem --cert CERT.pem --key KEY.pem"))
            return
        print(f"{name} may take part in {_runs_text(names)} with its certificate; at the site:\n")
        print(f"  {join} --ca CA.pem --cert CERT.pem --key KEY.pem")
        return
    is_there = any(site.name == name and _is_enrolled(site) for site in authority.sites())
    token = authority.invite(name, names, timedelta(hours=hours), datetime.now(UTC))
    note_in(out, {"event": "invited", "site": name, "runs": list(names), "hours": hours})
    if token_file is not None:
        write_private_file(token_file, f"{token}\n".encode())
        if as_json:
            print_json(Invited(name, names, None, str(token_file), hours, f"{join} --token-file FILE"))
            return
        print(f"{name} is invited to {_runs_text(names)}. The token, good once and for {hours:g} hours, is in")
        print(f"{token_file}; at the site, with that file:\n\n  {join} --token-file FILE")
        _say_if_there(name, is_there=is_there)
        return
    if as_json:
        print_json(Invited(name, names, token, None, hours, f"{join} --token -"))
        return
    print(f"{name} is invited to {_runs_text(names)}. The token is good once, for {hours:g} hours:\n")
    print(f"  {token}\n")
    print("At the site, where this asks for it; --token-file FILE and FEDLORA_TOKEN are ways without a question:\n")
    print(f"  {join} --token -")
    _say_if_there(name, is_there=is_there)


def _is_enrolled(site: "SiteRecord") -> bool:
    return site.status != "revoked" and site.not_after is not None and site.not_after > datetime.now(UTC)


def _say_if_there(name: str, *, is_there: bool) -> None:
    if is_there:
        print(f"\n{name} has enrolled before: where it has its certificate it takes part at once, without a token.")


@sites_app.command("list")
def list_sites(out: Out, identity: Identity = None, as_json: Json = False) -> None:
    """List the sites: who is invited, enrolled or revoked, and until when."""
    from rich.console import Console

    from fedlora.cli.server_view import sites_table

    records = authority_in(out, identity, None).sites()
    if as_json:
        print_json_list(
            SiteTold(site.name, site.runs, site.status, _iso(site.invitation_expires), _iso(site.not_after))
            for site in records
        )
        return
    if not records:
        print(f"no site yet; invite one with: fedlora sites invite NAME --out {shlex.quote(str(out))}")
        return
    Console().print(sites_table(records, datetime.now(UTC)))


@sites_app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    out: Out,
    identity: Identity = None,
    as_json: Json = False,
) -> None:
    """End a site's certificates and its invitation, at once and for good; it can be invited anew."""
    authority_in(out, identity, None).revoke(name)
    note_in(out, {"event": "revoked", "site": name})
    if as_json:
        print_json(Said("revoked", name))
    else:
        print(f"{name} is revoked")


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


def _runs_text(names: "Sequence[str]") -> str:
    from fedlora.server.identity.site_records import ANY_RUN

    return "every run of this server" if ANY_RUN in names else ", ".join(names)
