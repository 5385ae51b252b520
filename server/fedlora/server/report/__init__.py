"""The run's report: round reports in, one self-contained HTML page out. Pure; the caller writes the file.

matplotlib is imported by the first chart, so that importing this package costs nothing.
"""

from fedlora.server.report.answers import ShownAnswer
from fedlora.server.report.holdings import Holding, Holdings
from fedlora.server.report.page import ShownExample, render_report

__all__ = ["Holding", "Holdings", "ShownAnswer", "ShownExample", "render_report"]
