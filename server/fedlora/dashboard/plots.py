"""A chart's values as the page's script draws them: the panels of `series_chart`, as JSON. Pure."""

import json
import math
from collections.abc import Iterable, Sequence

from fedlora.common.printable import printable
from fedlora.server.report.content import Chart
from fedlora.server.report.drawing import amount_axis, percent_axis
from fedlora.server.report.series_chart import MOST_DOTS, Panel, Series, SeriesChart

# More of them would be drawn over one another; of more rounds the last are shown.
_MOST_PLACES = 5_000
_LONGEST_NAME = 120


def plot(chart: Chart) -> str:
    """Return what the script needs of a chart, as JSON; nothing for a drawing that has no series."""
    if not isinstance(chart, SeriesChart):
        return ""
    found = {place for panel in chart.panels for series in panel.series for place in series.values}
    places = sorted(found | set(chart.marked))[-_MOST_PLACES:]
    return json.dumps(
        {
            "title": printable(chart.title, most=_LONGEST_NAME),
            "places": printable(chart.places, most=_LONGEST_NAME),
            "hasTicks": chart.has_ticks,
            "x": places,
            "marked": [[place, words] for place, words in sorted(chart.marked.items())],
            "panels": [_panel(panel, places, chart.height) for panel in chart.panels],
        },
        allow_nan=False,
    )


def _panel(panel: Panel, places: Sequence[int], height: int) -> dict[str, object]:
    shown = [series for series in panel.series if series.values]
    return {
        "name": panel.name,
        "title": panel.title,
        "height": height,
        "share": panel.share,
        "isPercentage": panel.is_percentage,
        "fromZero": panel.axis in (amount_axis, percent_axis),
        "limits": _ends(panel.limits),
        "isBars": panel.is_bars,
        "isFirstInFront": panel.last_text is not None,
        "stems": panel.stems.style if panel.stems is not None else "",
        "series": [_series(series, places) for series in shown],
    }


def _series(series: Series, places: Sequence[int]) -> dict[str, object]:
    bands = [series.band.get(place, (math.nan, math.nan)) for place in places]
    return {
        "name": printable(series.name, most=_LONGEST_NAME),
        "colour": series.colour.style,
        "width": series.width,
        "dot": series.dot if not series.width or len(series.values) <= MOST_DOTS else 0,
        "hollow": [place in series.rings for place in places],
        "values": _finite(series.values.get(place, math.nan) for place in places),
        "low": _finite(low for low, _ in bands) if series.band else [],
        "high": _finite(high for _, high in bands) if series.band else [],
        "bandName": series.band_name,
    }


def _ends(limits: Sequence[float]) -> list[float]:
    finite = [value for value in limits if math.isfinite(value)]
    return [min(finite), max(finite)] if finite else []


def _finite(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
