"""A user's script without `if __name__ == "__main__"`: run by test_inprocess.py."""

from small_apps import make_obedient_app

from fedlora.simulation.inprocess import InProcessGrid

with InProcessGrid(make_obedient_app, num_nodes=1, environments=[{}]) as grid:
    while True:
        grid.pull_messages(["none"])
