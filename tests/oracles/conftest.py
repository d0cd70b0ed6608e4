"""Nothing here is collected where the `oracles` extra is not installed."""

import importlib.util
from pathlib import Path

NEEDS = {"test_harness.py": "lm_eval"}  # the others: torch

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if not importlib.util.find_spec(NEEDS.get(path.name, "torch"))
]
