"""The sites of a run, whatever carries what is asked of them: one contract, fulfilled by every engine."""

from flwr.serverapp import Grid

from fedlora.server.sites.contract import Reply, Sites, Traffic
from fedlora.server.sites.flower import FlowerSites, ForgetfulGrid
from fedlora.server.sites.lasting import LastingSites
from fedlora.server.sites.lasting_grid import LastingGrid

__all__ = ["FlowerSites", "ForgetfulGrid", "LastingSites", "Reply", "Sites", "Traffic", "sites_behind"]


def sites_behind(grid: Grid, *, num_sites: int) -> Sites:
    """Return the sites behind a Grid; `num_sites` of them are waited for where they do not come and go."""
    return LastingSites(grid) if isinstance(grid, LastingGrid) else FlowerSites(grid, num_sites=num_sites)
