"""A user's script without `if __name__ == "__main__"`: run by test_inprocess.py."""

from flwr.app import Message
from small_apps import make_obedient_app

from fedlora.common.messages import DescribeRequest
from fedlora.common.records import to_record
from fedlora.simulation.inprocess import InProcessGrid

with InProcessGrid(make_obedient_app, num_nodes=1, environments=[{}]) as grid:
    (reply,) = grid.send_and_receive([Message(to_record(DescribeRequest()), 1, "query")], timeout=30)
    print(reply.error.reason)
