"""Federated runs on one machine. Public.

from fedlora.simulation import preset, simulate

if __name__ == "__main__":
    result = simulate(preset("digits", "federation.rounds=3"), out="runs/try")
    print(result.reports[-1].held_out)
"""

from fedlora.simulation.presets import PRESETS, preset
from fedlora.simulation.simulate import SimulationResult, simulate

__all__ = ["PRESETS", "SimulationResult", "preset", "simulate"]
