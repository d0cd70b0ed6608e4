import os
import subprocess
import sys
from pathlib import Path

import pytest

from curvjax.training.devices import row_mesh


def test_everything_holds_on_eight_devices():
    """In a process of its own: the number of devices is fixed when JAX starts."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", Path(__file__).with_name("eight_devices.py")]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    flags += " --xla_backend_optimization_level=0"  # quick to compile
    # NPROC threads run all devices: with few, each may come to wait in another step's all-reduce
    env = os.environ | {"XLA_FLAGS": flags, "NPROC": "32"}
    inner = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, env=env)
    assert inner.returncode == 0, inner.stdout + inner.stderr


def test_one_device_needs_no_mesh():
    assert row_mesh(1) is None


@pytest.mark.parametrize("count", [0, -1, 1000])
def test_devices_that_are_not_there_are_refused(count):
    with pytest.raises(ValueError, match=rf"devices must be from 1 to \d+, .*; got {count}\."):
        row_mesh(count)
