"""The benchmarks run in small, and the numbers of their PyTorch rival are ours."""

import json
import sys

import jax
import pytest

from experiments.benchmarks import (
    all_gains,
    compile_time,
    damping_grid,
    fisher,
    gpu_estimate,
    huge_pages,
    prices,
    prices_memory,
    products,
    scaling,
    table,
    torch_rival,
)
from experiments.benchmarks.measuring import SCHEMA

pytestmark = pytest.mark.oracle

QUICK = (products, all_gains, damping_grid, fisher, scaling, compile_time, huge_pages, prices, prices_memory)


@pytest.fixture
def _compiled_in_haste():
    """Nothing here depends on how fast a program is, and compiling is all that takes time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_handwritten_pytorch_products_and_gains_are_ours():
    record = torch_rival.main(["--quick", "--torch-python", sys.executable, "--routes", "handwritten"])
    assert all(max(row["handwritten"].values()) < 1e-4 for row in record["agreement"])
    assert all(row["lower"] * 0.8 < row["handwritten"]["gain"] < row["upper"] * 1.001 for row in record["layers"])
    assert len(table.torch_rival(record)) == 3


def test_a_route_that_fails_is_named(tmp_path):
    with (
        torch_rival.rival(sys.executable, tmp_path, "handwritten", "float32") as other,
        pytest.raises(RuntimeError, match="'handwritten' ended at 'about'"),
    ):
        other("about")


@pytest.mark.usefixtures("_compiled_in_haste")
def test_every_command_runs_and_the_table_reads_its_record(tmp_path):
    for command in QUICK:
        name = command.__name__.rpartition(".")[2]
        command.main(["--quick", "--out", str(tmp_path / f"{name}.json")])
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert (record["schema"], record["benchmark"]) == (SCHEMA, name)
        assert record["settings"]["quick"]
        assert record["machine"]["load_average"]
    gaps = [str(row["gap"]) for row in json.loads((tmp_path / "all_gains.json").read_text())["gaps"]]
    measured, out = str(tmp_path / "all_gains.json"), str(tmp_path / "gpu_estimate.json")
    estimate = gpu_estimate.main(["--quick", "--measured", measured, "--gaps", *gaps, "--out", out])
    assert estimate["is_estimate"]
    counted = json.loads((tmp_path / "prices_memory.json").read_text())
    assert 3 < counted["over_weights"] < 4, "two models and one sum; a microbatch's gradient apart would be a fourth"
    made = table.table(tmp_path)
    assert made.count("\n") > 25
    assert "Not measured yet: `torch_rival`." in made
    assert "ESTIMATE" in made
