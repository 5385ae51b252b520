"""Imported first of all in the process that workers are forked from: it belongs to them alone."""

import gc
import os
from contextlib import suppress

from fedlora.client.worker.output import write_into
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

# What is imported stays: to look for garbage in it meanwhile takes a fifth of the time. `preloaded` enables it again.
gc.disable()
# What standard output and error go to.
_path = os.environ.pop("FEDLORA_FORKSERVER_OUTPUT", None)
if _path is not None:
    with suppress(OSError), open(_path, "wb", buffering=0) as _output:
        write_into(_output.fileno())
spare_bitsandbytes()
