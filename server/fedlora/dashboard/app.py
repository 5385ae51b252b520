"""What can be asked of a dashboard, and what answers; everything is read from the folder at that moment.

    /                       the runs, or the run's own page where the folder is one run's
    /runs/PLACE             a run's page
    /parts, /parts/PLACE    a part of a page (?part=now), with the state that it is of
    /events, /events/PLACE  server-sent events: which parts have changed
    /audit/PLACE            the audit log (?page=2)
    /adapters/PLACE         an adapter as a tar (?name=newest)
    /reports/PLACE          report.html
    /static/NAME            the script and the styles

PLACE is looked up among the runs that were found, and never used as a path.
"""

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fedlora.dashboard import pages
from fedlora.dashboard.downloads import AdapterResponse, tar_of
from fedlora.dashboard.files import offered_adapters
from fedlora.dashboard.found_runs import REPORT_FILE, is_run
from fedlora.dashboard.guard import Guard, own_names
from fedlora.dashboard.known_run import PARTS
from fedlora.dashboard.live_events import LiveEvents
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.dashboard.run_list import RunList, list_marks
from fedlora.dashboard.watched import WatchedRun, WatchedRuns
from fedlora.server.report import templating

_STATIC = {
    "page.css": (templating.__package__, "templates", "text/css"),
    "icon.svg": (__package__, "static", "image/svg+xml"),
    "dashboard.css": (__package__, "static", "text/css"),
    "dashboard.js": (__package__, "static", "text/javascript"),
    "charts.js": (__package__, "static", "text/javascript"),
    "uplot.min.css": (__package__, "static/uplot", "text/css"),
    "uplot.min.js": (__package__, "static/uplot", "text/javascript"),
}
_MOST_REPORT_BYTES = 256 << 20
# A report has its styles and pictures within itself, and no script: whatever else stands in such a file does nothing.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"


def dashboard_app(folder: Path, *, address: str, is_closing: Callable[[], bool] = lambda: False) -> ASGIApp:
    """Return the app that shows what lies in a folder.

    Args:
        folder: a run's, or one with runs below it.
        address: HOST:PORT, under which it is asked.
        is_closing: whether open streams are to end.
    """
    root = PlainFolder(folder.resolve())
    return Guard(_Dashboard(root, is_closing).app(), names=own_names(address))


class _Dashboard:
    """The answers, each from one method."""

    def __init__(self, root: PlainFolder, is_closing: Callable[[], bool]) -> None:
        self._root = root
        self._runs = WatchedRuns(root, pages.run_part)
        self._list = RunList()
        self._events = LiveEvents(is_closing)

    def app(self) -> Starlette:
        """Return the app."""
        place = "{place:path}"
        routes = [
            Route("/", self._front),
            Route(f"/runs/{place}", self._run),
            Route("/parts", self._list_part),
            Route(f"/parts/{place}", self._part),
            Route("/events", self._list_events),
            Route(f"/events/{place}", self._run_events),
            Route(f"/audit/{place}", self._audit),
            Route(f"/adapters/{place}", self._adapter),
            Route(f"/reports/{place}", self._report),
            Route("/static/{name}", self._static),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _said})
        # To an address that another request has named, nobody is sent.
        app.router.redirect_slashes = False
        return app

    def _front(self, _request: Request) -> Response:
        if is_run(self._root):
            return RedirectResponse("/runs/")
        found = self._runs.found()
        mark = list_marks(found)["list"]
        rows = self._list.rows(found)
        return HTMLResponse(pages.list_page(found, rows, mark, folder=self._root.path.name))

    def _list_part(self, _request: Request) -> Response:
        found = self._runs.found()
        mark = list_marks(found)["list"]
        return _part_response(mark, pages.list_part(found, self._list.rows(found)))

    async def _list_events(self, request: Request) -> Response:
        return self._events.response(request, lambda: list_marks(self._runs.found()))

    def _run(self, request: Request) -> Response:
        run, place = self._watched(request)
        return HTMLResponse(pages.run_page(run, place, is_alone=not place))

    def _part(self, request: Request) -> Response:
        run, _ = self._watched(request)
        part = request.query_params.get("part", "")
        if part not in PARTS:
            raise HTTPException(404, f"no such part; expected one of {', '.join(PARTS)}")
        return _part_response(*run.part(part))

    async def _run_events(self, request: Request) -> Response:
        run, _ = await run_in_threadpool(self._watched, request)
        return self._events.response(request, run.marks)

    def _audit(self, request: Request) -> Response:
        run, place = self._watched(request)
        number = request.query_params.get("page", "1")
        is_number = number.isascii() and number.isdecimal() and len(number) < 10
        page = run.audit.page(int(number) if is_number else 1)
        if page is None:
            raise HTTPException(404, "this run has no audit log; a server's has one")
        return HTMLResponse(pages.audit_page(page, place))

    def _adapter(self, request: Request) -> Response:
        run, place = self._watched(request)
        name = request.query_params.get("name", "")
        adapter = next((each for each in offered_adapters(run.folder) if each.name == name), None)
        if adapter is None:
            raise HTTPException(404, "no such adapter; the run's page lists those that are there")
        run_name = place.rpartition("/")[2] or run.folder.path.name
        name = adapter.name if len(adapter.place) > 1 else f"{run_name}-{adapter.name}"
        archive = tar_of(run.folder, adapter, name=name)
        if archive is None:
            raise HTTPException(404, "this adapter was replaced meanwhile; try again")
        return AdapterResponse(archive, name, has_body=request.method != "HEAD")

    def _report(self, request: Request) -> Response:
        place = str(request.path_params["place"])
        found = self._runs.found()
        folder = found.runs.get(place) or found.comparisons.get(place)
        content = folder.read(REPORT_FILE, most_bytes=_MOST_REPORT_BYTES) if folder is not None else None
        if content is None:
            raise HTTPException(404, "no report there yet")
        return HTMLResponse(content, headers={"Content-Security-Policy": _REPORT_POLICY})

    def _static(self, request: Request) -> Response:
        found = _STATIC.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "no such file")
        package, folder, kind = found
        content = files(package).joinpath(folder, request.path_params["name"]).read_bytes()
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    def _watched(self, request: Request) -> tuple[WatchedRun, str]:
        place = str(request.path_params["place"])
        run = self._runs.run(place)
        if run is None:
            raise HTTPException(404, "no such run in this folder; it may have been moved or removed")
        return run, place


def _part_response(mark: str, html: str) -> Response:
    return HTMLResponse(html, headers={"X-Part-State": mark})


def _said(request: Request, error: Exception) -> Response:
    """Return an error as a page, or to who asked for no page as a line."""
    if not isinstance(error, HTTPException):
        raise error
    is_page = "text/html" in request.headers.get("accept", "")
    headers: Mapping[str, str] = error.headers or {}
    if not is_page:
        return PlainTextResponse(f"{error.detail}\n", error.status_code, dict(headers))
    title = "Not there" if error.status_code == 404 else "No page"
    return HTMLResponse(pages.error_page(title, error.detail), error.status_code, dict(headers))
