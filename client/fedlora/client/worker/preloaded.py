"""Imported last of all in the process that workers are forked from.

What was imported before is spared by the garbage collection: the first one in each worker would touch it all, and with
it copy the memory that the workers share, which takes a second.
"""

import gc

gc.freeze()
gc.enable()
