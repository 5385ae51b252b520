"""The report's sentence on clients that weighed less than their examples or tokens would have them."""

from collections.abc import Mapping, Sequence

from fedlora.server.record.round_report import ClientReport, RoundReport, Share
from fedlora.server.report.numbers import by_client
from fedlora.server.report.wording import list_text, ranges_text, share_text


def about_caps(reports: Sequence[RoundReport]) -> str:
    """Return whose weight was capped, in which rounds and from what; nothing where nobody's was."""
    found = by_client(reports, _capped)
    if not found:
        return ""
    cases = [f"{name} in round{'s' if len(shares) > 1 else ''} {_rounds(shares)}" for name, shares in found.items()]
    return f"Weights were capped (federation.max_share): {list_text(cases)}."


def cap_lines(report: RoundReport) -> list[str]:
    """Return whose weight in a round is less than its examples or tokens would have it, each with both."""
    capped = {name: _capped(part) for name, part in sorted(report.clients.items())}
    return [f"{name}: {capped_text(share)}" for name, share in capped.items() if share is not None]


def capped_text(share: Share) -> str:
    """Return what a client weighs in place of what, in words."""
    return f"{share_text(share.given)} in place of {share_text(share.wanted)}"


def _capped(part: ClientReport) -> Share | None:
    return part.share if part.share is not None and part.share.is_capped else None


def _rounds(shares: Mapping[int, Share]) -> str:
    return f"{ranges_text(shares)} ({capped_text(shares[max(shares)])})"
