"""What Offramp's speed and memory are held to.

``python -m benchmarks [names...]`` measures it and writes metrics/benchmarks.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
