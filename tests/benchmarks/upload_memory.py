"""`uploads`: memory of the server (RssAnon) while 4, 16 and 64 sites upload 100 MB each, all at once, over mTLS.

RssAnon is what the process has allocated; the files' pages are the kernel's and not in it. The server runs the whole
strategy: each update is made whole, checked and journaled while others are still coming. "Above idle" is the most of
the time from the first byte of an upload to the last accepted update, less what there was right before, with all
sites connected and asked. At that time the server holds the round's first adapter, in float32 twice as large; the
rows say how much the server held alone and then. After the uploads come outliers, aggregation and checkpoint.
"""

from collections.abc import Iterator

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the memory for each number of sites."""
    wire_megabytes, numbers = (5, (4,)) if quick else (100, (4, 16, 64))
    for num_sites in numbers:
        label = f"{num_sites} x {wire_megabytes} MB"
        progress(label)
        run = run_fresh("measured_uploads.py", wire_megabytes, num_sites)
        above = (run["uploading"] - run["asked"]) / 1e6
        yield Figure(f"{label}: uploads and admission above idle", "MB", [above], at_most(100))
        yield Figure(f"{label}: above idle, a site", "MB", [above / num_sites])
        yield Figure(f"{label}: server alone", "MB", [run["alone"] / 1e6])
        yield Figure(f"{label}: idle: all sites connected and asked", "MB", [run["asked"] / 1e6])
        yield Figure(f"{label}: after the uploads, above idle", "MB", [max(0.0, run["ending"] - run["asked"]) / 1e6])
        yield Figure(f"{label}: first byte to last accepted update", "s", [run["seconds"]])
        speed = num_sites * run["upload_bytes"] / 1e6 / run["seconds"]
        yield Figure(f"{label}: throughput of all", "MB/s", [speed])
