"""What the tests of trackers share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
