"""Federated runs on one machine. Public.

from fedlora.simulation import preset, simulate

if __name__ == "__main__":
    result = simulate(preset("digits", "federation.rounds=3"), out="runs/try")
    print(result.reports[-1].held_out)

`run_in_process(get_client_app, get_server_app, num_nodes=4, num_workers=2)` runs any Flower apps in the same way.
"""

from fedlora.simulation.inprocess import run_in_process
from fedlora.simulation.presets import PRESETS, preset
from fedlora.simulation.simulate import SimulationResult, simulate

__all__ = ["PRESETS", "SimulationResult", "preset", "run_in_process", "simulate"]
