"""Trackers: what keeps a run's numbers live, round by round, where others look at them, TensorBoard for one.

    fedlora simulate run.toml --track tensorboard

A tracker of your own is a function that returns an object with the three members of `Tracker`, and one line in your
package's pyproject.toml:

    [project.entry-points."fedlora.trackers"]
    my_tracker = "my_package.my_tracker:open_tracker"
"""

from fedlora.trackers.registry import load_trackers
from fedlora.trackers.tracker import OpenTracker, TrackedRun, Tracker

__all__ = ["OpenTracker", "TrackedRun", "Tracker", "load_trackers"]
