"""Memory of the server while many sites upload: python measured_uploads.py WIRE_MB NUM_SITES ANSWER.json

The server is a process of its own, with the whole strategy; the sites are light ones in this process, a thread each.
All wait until every site has been asked, and a second more; then all upload at once, each the same difference in
bfloat16, and the strategy makes, checks and journals each update.
"""

import json
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from idle_app import changed
from idle_federation import IdleFederation, idle_run, idle_server, shape_of, write_adapter
from light_site import LightSite, enrolled
from process_watch import MemoryWatch
from progress import progress

from fedlora.adapters.differences import encode_file
from fedlora.common.channels import Credentials
from fedlora.common.files import sha256_of
from fedlora.v1 import messages_pb2

_REST_SECONDS = 1.0
# The last adapter is checked and published meanwhile.
_END_SECONDS = 600.0


class _Uploads:
    """What all sites send, and the moment from which on they do."""

    def __init__(self, adapter: Path, num_sites: int) -> None:
        self.first, self.update = Path("first").resolve(), Path("update").resolve()
        encode_file(adapter, self.first, reference=None, precision="float32")
        trained = Path("trained").resolve()
        trained.write_bytes(changed(adapter.read_bytes()))
        encode_file(trained, self.update, reference=adapter, precision="bfloat16")
        self.blobs = {path: _blob(path) for path in (self.first, self.update)}
        self.asked = threading.Barrier(num_sites + 1)
        self.begin = threading.Event()


def main(wire_megabytes: float, num_sites: int, answer: Path) -> None:
    """Write the server's RssAnon in bytes at each stage, and the seconds of the uploads."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    write_adapter(adapter, shape_of(wire_megabytes))
    uploads = _Uploads(adapter, num_sites)
    config = idle_run(num_rounds=1, num_sites=num_sites, method="fedit")
    with ExitStack() as stack:
        federation = stack.enter_context(idle_server(folder, config))
        watch = stack.enter_context(MemoryWatch(federation.server.pid).watching())
        names = [f"site-{number:02d}" for number in range(num_sites)]
        credentials = {name: enrolled(federation, name) for name in names}
        alone = time.monotonic()
        for name in names:
            arguments = (federation, name, credentials[name], uploads)
            threading.Thread(target=_take_part, args=arguments, daemon=True).start()
        uploads.asked.wait(600)
        time.sleep(_REST_SECONDS)
        began = time.monotonic()
        uploads.begin.set()
        progress(f"{num_sites} sites upload {uploads.blobs[uploads.update].size_bytes:,} bytes each")
        ended = federation.wait_for_round(1)["at"]
        if any(event["reason"] for event in federation.events("UpdateArrived")):
            raise RuntimeError(f"not all updates were accepted: {federation.events('UpdateArrived')}")
        arrived = [event["at"] for event in federation.events("UpdateArrived")]
        written = {
            "alone": watch.between(0, alone)[-1],
            "asked": watch.between(0, began)[-1],
            "uploading": max(watch.between(began, max(arrived))),
            "ending": max(watch.between(max(arrived), ended), default=0),
            "seconds": max(arrived) - began,
            "upload_bytes": uploads.blobs[uploads.update].size_bytes,
        }
        # The server ends in good order, and the threads with their connections.
        federation.server.wait(_END_SECONDS)
    progress(str(written))
    answer.write_text(json.dumps(written))


def _take_part(federation: IdleFederation, name: str, credentials: Credentials, uploads: _Uploads) -> None:
    site = LightSite(f"127.0.0.1:{federation.port}", name, credentials)
    site.say_ready()
    for response in site.responses():
        if response.HasField("request"):
            path = uploads.first
            if response.request.HasField("train"):
                path = uploads.update
                uploads.asked.wait(600)
                uploads.begin.wait(600)
            site.answer(response.request, path, uploads.blobs[path])
        elif response.HasField("drain"):
            break
    site.close()


def _blob(path: Path) -> messages_pb2.Blob:
    return messages_pb2.Blob(sha256=bytes.fromhex(sha256_of([path])), size_bytes=path.stat().st_size)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
