"""Starts a grid whose workers are in endless loops, and waits to be killed: run by test_inprocess.py.

python abandoned_grid.py FOLDER: each worker leaves a file named after its process id there.
"""

import sys
import time

from flwr.app import Message
from small_apps import make_obedient_app

from fedlora.common.messages import TrainRequest
from fedlora.common.records import to_record
from fedlora.simulation.inprocess import InProcessGrid

if __name__ == "__main__":
    request = TrainRequest(f"loop {sys.argv[1]}", 1, 0, 0, 1, 0)
    with InProcessGrid(make_obedient_app, num_nodes=2, environments=[{}, {}]) as grid:
        grid.push_messages([Message(to_record(request), node, "train", group_id="1") for node in grid.get_node_ids()])
        time.sleep(600)
