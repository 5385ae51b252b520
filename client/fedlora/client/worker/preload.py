"""Imported first of all in the process that workers are forked from: it belongs to them alone."""

import os
from contextlib import suppress

from fedlora.client.worker.output import write_into
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

# What standard output and error go to.
_path = os.environ.pop("FEDLORA_FORKSERVER_OUTPUT", None)
if _path is not None:
    with suppress(OSError), open(_path, "wb", buffering=0) as _output:
        write_into(_output.fileno())
spare_bitsandbytes()
