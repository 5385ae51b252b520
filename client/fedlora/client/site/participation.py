"""A site in one run: what its connection asks for, by its own rules first, and nothing twice.

One thread works through the requests. A connection may come and go meanwhile: what is wanted at the moment is what
the present connection has asked for, and a result that nobody wants any more waits on disk.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import grpc

from fedlora.client.site.events import Listener, Moved, Settled, StandingTold, ignore, phase
from fedlora.client.site.limits import data_lines, standing
from fedlora.client.site.line import ConnectionGone, Line
from fedlora.client.site.outbox import Finished, Outbox
from fedlora.client.site.site_file import SiteConfig
from fedlora.client.site.tasks import Key, Tasks, key_of
from fedlora.client.site.terms import Objection, objection_to, objection_to_what_was_loaded
from fedlora.client.site.transfer import upload
from fedlora.client.site.uploads import Uploads
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.channels import DISK_FULL, details_of
from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError, RunError
from fedlora.common.messages import (
    INTERNAL,
    INTERRUPTED,
    WORKER_DIED,
    DescribeRequest,
    Failure,
    SiteDescription,
    TrainRequest,
)
from fedlora.common.phases import announce
from fedlora.common.wire import Receipt, Request, read_request, write_description, write_receipt
from fedlora.v1 import session_pb2

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_MAX_TRIES = 20
_LOOK_SECONDS = 0.1
_DEATH_PAUSE_SECONDS = 5.0
# An honest server asks a site for one thing or two at a time, by ids that are short.
_MOST_WANTED = 16
_LONGEST_ID = 200

# What a site can do about a code with which it is turned away, for its own log.
_MISFITS = {
    "other_base_model": ": the base model here has other weights than the run's; fetch the run's revision",
    "other_tokenizer": ": the tokenizer beside the base model here is another than the run's; fetch the run's revision",
    "other_added_tokens": ": the tokenizer here has other added tokens than the run's; fetch the run's revision",
    "other_chat_template": ": the chat template here is another than the run's; fetch the run's revision of the model",
    "no_start": ": the first adapter that this site made is not what the run file says; update fedlora and PEFT here",
    "other_metric": ": this site runs another version of fedlora or of the task",
    "other_num_examples": ": the training data here are more or fewer than when this site joined, by which it weighs; "
    "bring the former data back, or ask for an invitation under another name",
}


class Participation:
    """One site in one run."""

    def __init__(
        self,
        run: RunConfig,
        site: SiteConfig,
        *,
        seat: WorkerSeat,
        outbox: Outbox,
        is_paused: Callable[[], bool],
        listener: Listener = ignore,
    ) -> None:
        self._run = run
        self._site = site
        self._seat = seat
        self._outbox = outbox
        self._is_paused = is_paused
        self._listener = listener
        self._description: SiteDescription | None = None
        self._reason = ""
        self._told = ""
        self._line: Line | None = None
        self._wanted: dict[Key, session_pb2.Request] = {}
        self._queued: set[Key] = set()
        self._answered: set[str] = set()
        self._at_work: Key | None = None
        self._tasks: Tasks | None = None
        self._uploads = Uploads()
        self._is_closed = False
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[Key | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="site").start()

    # -- for the connection

    def connected(self, line: Line) -> None:
        """Take a new connection; whatever the last one asked for is asked for again if it is still wanted."""
        with self._lock:
            self._line, self._told = line, ""
            self._wanted.clear()
            self._answered.clear()
        self._queue.put(None)

    def disconnected(self) -> None:
        """Note that the connection is gone."""
        with self._lock:
            self._line = None
            self._wanted.clear()

    def take(self, response: session_pb2.ConnectResponse) -> None:
        """Handle what the server sent."""
        match response.WhichOneof("content"):
            case "request":
                self._want(response.request)
            case "cancellation":
                self._forget(response.cancellation.request_id)
            case "acknowledgement":
                self._settle(response.acknowledgement)
            case "turned_away":
                # What does not fit stays as it is until somebody mends it and starts the site again.
                self._reason = self._told = response.turned_away.reason
                self._listener(StandingTold(self._reason))
                logger.error("turned away by the server: %s%s", self._reason, _MISFITS.get(self._reason, ""))

    def _want(self, request: session_pb2.Request) -> None:
        """Note what the server asks for; what no honest one would is passed over."""
        key, id = key_of(request), request.request_id
        with self._lock:
            done = [known for known, message in self._wanted.items() if message.request_id in self._answered]
            if len(id) > _LONGEST_ID or (key not in self._wanted and len(self._wanted) - len(done) >= _MOST_WANTED):
                logger.warning("passed over a request of the server: no honest one asks for so much at a time")
                return
            if key in self._wanted and self._wanted[key].request_id != id:
                self._answered.discard(self._wanted[key].request_id)
            for oldest in done[:-_MOST_WANTED]:
                self._answered.discard(self._wanted.pop(oldest).request_id)
            self._wanted[key] = request
            if key not in self._queued:
                self._queued.add(key)
                self._queue.put(key)

    def look(self) -> None:
        """Tell the server whether the site takes part, if that has changed: by its own hours, or by hand."""
        with self._lock:
            line, description = self._line, self._description
            reason = self._reason or self._standing()
            told = reason or ("ready" if description is not None else "")
            if line is None or told in ("", self._told):
                return
            self._told = told
        if reason or description is None:
            readiness = session_pb2.Readiness(reason=reason)
        else:
            readiness = session_pb2.Readiness(description=write_description(description))
        line.send(session_pb2.ConnectRequest(readiness=readiness))
        self._listener(StandingTold(reason))
        logger.info("%s", f"takes no part: {reason}" if reason else "ready")

    def close(self) -> None:
        """End the worker, and do nothing more."""
        self._is_closed = True
        self._queue.put(None)
        self._seat.close()

    # -- the thread that works

    def _work(self) -> None:
        while True:
            key = self._queue.get()
            if self._is_closed:
                return
            with self._lock:
                self._queued.discard(key)
            try:
                if key is None:
                    self._rehearse()
                    self.look()
                else:
                    self._serve(key)
            except Exception:
                logger.exception("a request could not be served; this is a bug in fedlora")
                if key is not None:
                    with suppress(grpc.RpcError):
                        self._answer(key, Failure(INTERNAL))
            self._at_work = None

    def _rehearse(self) -> None:
        """Load base model and data, and do one step, before the server counts on it; once in a worker's lifetime."""
        if self._description is not None or self._reason:
            return
        if (objection := objection_to(self._run, self._site)) is not None:
            self._object(objection)
            return
        logger.info("rehearsing: base model, data, one step of training")
        began = time.monotonic()
        with phase(self._listener, "rehearse") as fail:
            answer = self._seat.ask(self._seat.message(DescribeRequest(rehearse=True)), SiteDescription)
            fail(answer.code if isinstance(answer, Failure) else "")
        if isinstance(answer, SiteDescription):
            if (objection := objection_to_what_was_loaded(self._run, self._site, answer)) is not None:
                self._object(objection)
                return
            logger.info("rehearsed in %.1f s: %d training examples", time.monotonic() - began, answer.num_examples)
            for line in data_lines(answer):
                logger.warning("%s", line)
            self._tasks = Tasks(
                self._run,
                self._site,
                answer,
                seat=self._seat,
                outbox=self._outbox,
                line=self._required_line,
                listener=self._listener,
            )
            self._description = answer
        elif isinstance(answer, Failure):
            logger.error("the rehearsal failed (%s): %s", answer.code, answer.text)
            if answer.code == WORKER_DIED:
                time.sleep(_DEATH_PAUSE_SECONDS)
                self._queue.put(None)
            else:
                self._reason = answer.code

    def _object(self, objection: Objection) -> None:
        logger.error("takes no part in this run: %s", objection.line)
        self._reason = objection.code

    def _serve(self, key: Key) -> None:
        """Do one request, and answer it for as long as it is wanted."""
        num_tries = num_broken = 0
        while (message := self._current(key)) is not None:
            self._at_work = key
            try:
                request = read_request(message)
                with phase(self._listener, key[0], round=key[2], traceparent=message.traceparent) as fail:
                    result = self._result(key, request, message)
                    fail(result.code if isinstance(result, Failure) else "")
                    # It was cancelled, and then asked for again before the worker had left off.
                    if not (isinstance(result, Failure) and result.code == INTERRUPTED):
                        self._answer(key, result)
            except grpc.RpcError as error:
                num_tries += 1
                # That a server has no room is for its operator to mend, and the update is kept for as long.
                num_broken += details_of(error) != DISK_FULL
                if num_broken == _MAX_TRIES:
                    logger.error("the transfer broke off (%s) %d times, and is given up", _words(error), num_broken)
                    with suppress(grpc.RpcError):
                        self._answer(key, Failure("transfer"))
                    return
                seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(num_tries - 1, 10))
                logger.warning("the transfer broke off (%s); trying again in %.0f s", _words(error), seconds)
                self._wait(key, seconds)
            except FedloraError as error:
                logger.error("%s", error)
                self._answer(key, Failure(error.code, str(error)))

    def _result(self, key: Key, request: Request, message: session_pb2.Request) -> Receipt | Finished:
        """Return the result of a request: from disk where it was done before, else as the site's own rules allow."""
        if self._tasks is None:
            return Failure(self._reason or "not_ready")
        if not self._tasks.is_done(key, request) and (reason := self._reason or self._standing()):
            return Failure(reason)
        return self._tasks.result(key, request, message)

    def _answer(self, key: Key, result: Receipt | Finished) -> None:
        """Send a result for the request as it is wanted now; it was answered before or is wanted no more: nothing."""
        message = self._current(key)
        if message is None:
            return
        line = self._required_line()
        answer = session_pb2.Answer()
        if isinstance(result, Finished):
            answer.CopyFrom(result.answer)
            if answer.HasField("train"):
                # The same training, whatever attempt it was first asked with.
                answer.train.attempt = message.train.attempt
            if answer.HasField("adapter"):
                blob = answer.adapter.encoded
                effort = self._uploads.effort_for(blob.sha256)
                with phase(self._listener, "upload"):
                    sent = upload(
                        line.exchange, message.ticket, result.update, blob, metadata=line.metadata, effort=effort
                    )
                self._listener(Moved(bytes_up=sent))
                round = answer.sum.round if answer.HasField("sum") else answer.train.round
                logger.info("round %d: sent %s bytes", round, f"{sent:,}")
        else:
            write_receipt(result, answer)
        answer.request_id = message.request_id
        with self._lock:
            if self._line is not line:  # Asked again over the next connection, it must be answered there.
                raise ConnectionGone
            self._answered.add(message.request_id)
            line.send(session_pb2.ConnectRequest(answer=answer))
        announce("before the acknowledgement")

    # -- within

    def _standing(self) -> str:
        return standing(self._site.limits, is_paused=self._is_paused(), now=datetime.now().time())

    def _current(self, key: Key) -> session_pb2.Request | None:
        with self._lock:
            message = self._wanted.get(key)
            return None if message is None or message.request_id in self._answered else message

    def _wait(self, key: Key, seconds: float) -> None:
        """Wait so long, or until a request is wanted no more."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._current(key) is not None and not self._is_closed:
            time.sleep(_LOOK_SECONDS)

    def _required_line(self) -> Line:
        with self._lock:
            if self._line is None:
                raise ConnectionGone
            return self._line

    def _forget(self, request_id: str) -> None:
        with self._lock:
            unwanted = [key for key, message in self._wanted.items() if message.request_id == request_id]
            if self._at_work in unwanted:
                self._seat.interrupt()
            self._wanted = {key: message for key, message in self._wanted.items() if message.request_id != request_id}

    def _settle(self, acknowledgement: session_pb2.Acknowledgement) -> None:
        if acknowledgement.taken_back_round:
            what = "the update was accepted, and in comparison with the others' is refused after all"
            logger.warning("round %d: %s (%s)", acknowledgement.taken_back_round, what, acknowledgement.refusal)
            self._listener(Settled(acknowledgement.taken_back_round, acknowledgement.refusal))
            return
        with self._lock:
            found = [item for item in self._wanted.values() if item.request_id == acknowledgement.request_id]
        for message in found:
            self._forget(acknowledgement.request_id)
            try:
                request = read_request(message)
            except RunError:
                continue  # It was refused, and its run names no folder of ours.
            if not isinstance(request, TrainRequest):
                continue
            if acknowledgement.refusal == "not_stored":
                logger.warning("round %d: the server could not store the update", request.round)
                continue
            self._outbox.settle(request.run, request.round, is_accepted=not acknowledgement.refusal)
            self._listener(Settled(request.round, acknowledgement.refusal))
            what = f"refused ({acknowledgement.refusal})" if acknowledgement.refusal else "accepted"
            logger.info("round %d: %s", request.round, what)


def _words(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    return f"{code().name if code else 'no connection'}: {details_of(error)}"
