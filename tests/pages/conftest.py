"""What tests of pages share lies beside them, in `samples.py` and `markup.py`."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests are imported by path, so that a neighbour is no module without this.
sys.path.insert(0, str(Path(__file__).parent))
