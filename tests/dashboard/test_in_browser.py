"""The page in a browser: it loads without a complaint, follows a run, and asks nobody else for anything."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

pytest.importorskip("websockets", reason="the browser is driven over a websocket: pip install websockets")

from browser import Tab, browser, chromium
from report_pages import finished, held_out, start
from shown_runs import append, shown, write_adapter, write_run
from test_hostile_folders import SCRIPT

if chromium() is None:
    pytest.skip("Chromium is not installed: apt-get install chromium", allow_module_level=True)

DRAWN = "[...document.querySelectorAll('.plot')].filter(each => each.querySelector('canvas')).length"
SHOWN_ROUND = "document.querySelector('.plot .at')?.textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """Return a page in a browser that knows no name but that of this machine."""
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with browser(tmp_path_factory.mktemp("browser") / "profile", nowhere) as tab:
        yield tab


@pytest.fixture(autouse=True)
def _forgotten(tab: Tab) -> None:
    tab.complaints.clear()
    tab.requested.clear()


def test_a_round_that_is_added_while_the_page_is_open_is_shown(tmp_path: Path, tab: Tab) -> None:
    run = write_run(tmp_path, start(), finished(1))
    with shown(run) as client:
        tab.open(f"{client.url}/")
        tab.wait_for(f"{DRAWN} > 0")
        tab.wait_for("document.getElementById('live').textContent === 'live'")
        assert tab.value(SHOWN_ROUND) == "round 1:"
        assert "in 1 of the 4 planned rounds" in tab.value("document.body.innerText")
        tab.value("document.querySelector('details').open = true; document.body.dataset.mark = 'the same page'")
        append(run, finished(2))
        write_adapter(run / "adapter")
        tab.wait_for("document.body.innerText.includes('in 2 of the 4 planned rounds')")
        tab.wait_for(f"{SHOWN_ROUND} === 'round 2:'")
        tab.wait_for("document.querySelector('a[download]') !== null")
        assert tab.value("document.body.dataset.mark") == "the same page"
        assert tab.value("document.querySelector('details').open")
        assert tab.complaints == []
        assert all(address.startswith(f"{client.url}/") for address in tab.requested)
        tab.open("about:blank")


def test_values_follow_the_pointer_and_dragging_zooms(tmp_path: Path, tab: Tab) -> None:
    run = write_run(tmp_path, start(), *(finished(number, held_out=_scores(number)) for number in range(1, 9)))
    with shown(run) as client:
        tab.open(f"{client.url}/runs/")
        tab.wait_for(f"{DRAWN} > 0")
        tab.value("document.querySelector('.plot').scrollIntoView({block: 'center'})")
        left, top, width, height = _place(tab, ".plot .u-over")
        middle = top + height / 2
        for type, x in (("mouseMoved", 5), ("mouseMoved", width / 2)):
            tab.call("Input.dispatchMouseEvent", type=type, x=left + x, y=middle)
        tab.wait_for(f"{SHOWN_ROUND} === 'round 4:'")
        assert tab.value("document.querySelector('.plot .keys b').textContent") == "45.0 %"
        presses = (("mousePressed", 0.4), ("mouseMoved", 0.5), ("mouseMoved", 0.7), ("mouseReleased", 0.7))
        for type, share in presses:
            x = left + share * width
            tab.call("Input.dispatchMouseEvent", type=type, x=x, y=middle, button="left", buttons=1, clickCount=1)
        tab.wait_for("document.querySelector('.zoomed button') !== null")
        append(run, finished(9, held_out=_scores(9)))
        tab.wait_for("document.body.innerText.includes('in 9 rounds')")
        tab.value("document.querySelector('.zoomed button').click()")
        tab.wait_for("document.querySelector('.zoomed button') === null")
        assert tab.complaints == []
        tab.open("about:blank")


def test_names_from_a_run_do_nothing_in_charts_either(tmp_path: Path, tab: Tab) -> None:
    names = {SCRIPT: 0.2, "b": 0.3}
    write_run(tmp_path / "run", start(names), finished(1, held_out=held_out(names)))
    with shown(tmp_path) as client:
        tab.open(f"{client.url}/runs/run")
        tab.wait_for(f"{DRAWN} > 1")
        assert tab.value("[...document.querySelectorAll('.plot')].some(each => each.innerText.includes('onerror'))")
        assert tab.value("document.images.length") == 0
        assert tab.complaints == []
        tab.open("about:blank")


def test_every_page_fits_a_phone_and_can_be_heard(tmp_path: Path, tab: Tab) -> None:
    run = write_run(tmp_path / "run", start(), finished(1, refused={"serif": "late"}), finished(2))
    (run / "audit.jsonl").write_text("")
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
    with shown(tmp_path) as client:
        for path in ("/", "/runs/run", "/audit/run", "/runs/nothing"):
            tab.open(f"{client.url}{path}")
            assert tab.value("document.documentElement.scrollWidth") <= 390, path
            assert tab.value("document.querySelectorAll('h1').length") == 1, path
            assert tab.value("[...document.querySelectorAll('th')].every(each => each.scope)"), path
            assert tab.value("[...document.querySelectorAll('.plot')].every(each => each.ariaLabel)"), path
            assert tab.value("[...document.querySelectorAll('.scrolls')].every(each => each.tabIndex === 0)"), path
    tab.open("about:blank")
    tab.call("Emulation.clearDeviceMetricsOverride")


def _scores(number: int) -> object:
    return held_out({"mnist": 0.05 + 0.1 * number, "serif": 0.05 + 0.1 * number})


def _place(tab: Tab, selector: str) -> tuple[float, float, float, float]:
    found = tab.value(f"JSON.stringify(document.querySelector('{selector}').getBoundingClientRect())")
    box = json.loads(found)
    return box["left"], box["top"], box["width"], box["height"]
