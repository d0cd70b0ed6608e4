"""Every notebook runs from a clean state, without a warning, and draws its figures: half a minute each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
WARNINGS = ("error", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # as the suite's own


@pytest.mark.demo_model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_writes_every_figure(path, tmp_path):
    settings = {
        "MPLBACKEND": "Agg",
        "FIGURES": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation is most of its time
        "PYTHONWARNINGS": ",".join(WARNINGS),
    }
    # From an empty folder, so that nothing rests on where it is started.
    done = subprocess.run(
        [sys.executable, path],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    named = set(re.findall(r'^show\(.*"(\w+)"\)$', path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named
    assert {figure.stem for figure in tmp_path.glob("*.png")} == named
    assert all(figure.stat().st_size > 10_000 for figure in tmp_path.glob("*.png"))
