"""Nothing here is collected where the `oracles` extra is not installed."""

import importlib.util
from pathlib import Path

NEEDS = {  # the others: torch
    "test_harness.py": "lm_eval",
    "test_mlx.py": "mlx_lm",
    "test_compressed_tensors.py": "compressed_tensors",
    "test_gguf.py": "xllamacpp",
    "test_qwix.py": "qwix",
    "test_notebooks.py": "matplotlib",
}

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if not importlib.util.find_spec(NEEDS.get(path.name, "torch"))
]
