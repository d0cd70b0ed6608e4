"""Counts of the benchmarks are the programs', and the README's table is that of the records."""

import json
import math

import jax
import pytest

from curvjax.curvature import ggn_product, unit_gradient
from curvjax.models import parameters
from experiments.benchmarks import (
    flops,
    gpu,
    gpu_estimate,
    table,
    whole_model,
)
from experiments.benchmarks.measuring import SCHEMA, TINY, Settings, apart, engine, proportioned, random_subject


def matrix_flops(jaxpr):
    """Two for each multiply of every matrix product in a program and in all programs inside it."""
    total = 0
    for step in jaxpr.eqns:
        if step.primitive.name == "dot_general":
            (contracted, _), _ = step.params["dimension_numbers"]
            total += 2 * step.outvars[0].aval.size * math.prod(step.invars[0].aval.shape[i] for i in contracted)
        total += sum(matrix_flops(inner) for inner in jax.extend.core.jaxprs_in_params(step.params))
    return total


@pytest.fixture(scope="module")
def tiny():
    return random_subject(TINY, tokens=16, length=8, seed=1)


def test_counted_flops_are_those_of_the_traced_programs(tiny):
    sizes, opened = flops.Sizes(TINY, 16, 8), engine(tiny)
    for unit in opened.units:
        vector = unit_gradient(opened.model, opened.passes, unit)
        traced = jax.make_jaxpr(ggn_product(opened.model, opened.passes, unit))(vector)
        assert matrix_flops(traced.jaxpr) == flops.product(sizes, unit.index)
    values, forward = parameters(tiny.model), flops.gradient(sizes) // 3
    loss = whole_model.logits(tiny.model, tiny.batch)
    assert matrix_flops(jax.make_jaxpr(loss)(values).jaxpr) == forward
    slope = jax.make_jaxpr(lambda values: jax.vjp(loss, values)[1](loss(values)))(values)
    assert matrix_flops(slope.jaxpr) == flops.gradient(sizes) + forward
    naive = jax.make_jaxpr(whole_model.ggn_product(tiny))(values, values)
    assert matrix_flops(naive.jaxpr) == flops.whole_product(sizes) + forward  # which the compiler shares


def test_naive_product_is_the_engines_on_one_layer(tiny):
    opened, values = engine(tiny), parameters(tiny.model)
    unit = opened.units[1]
    mask = whole_model.mask(values, unit)
    whole = jax.jit(whole_model.ggn_product(tiny))(values, {path: array * mask[path] for path, array in values.items()})
    varied = {path.removeprefix("layers.1."): values[path] for path in unit.paths}
    ours = ggn_product(opened.model, opened.passes, unit)(varied)
    for path, array in ours.items():
        assert jax.numpy.allclose(array, whole[f"layers.1.{path}"], rtol=1e-4, atol=1e-6)


def test_quick_runs_write_no_record_by_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "measure", lambda settings: {})  # its code is this file's: a record would land here
    before = set(table.HERE.iterdir())
    gpu.main(["--quick"])
    assert set(table.HERE.iterdir()) == before


def test_readme_table_is_that_of_the_records():
    readme = (table.HERE / "README.md").read_text(encoding="utf-8")
    assert table.with_table(readme) == readme, "run `python -m experiments.benchmarks.table`"


def test_gpu_is_not_measured_elsewhere():
    with pytest.raises(RuntimeError, match="this measures a GPU, and JAX has found 'cpu'"):
        gpu.measure(gpu.Gpu())


def test_estimate_needs_the_gaps_it_is_asked_for(tmp_path):
    record = tmp_path / "all_gains.json"
    record.write_text(json.dumps({"schema": SCHEMA, "gaps": [{"gap": 0.5}]}))
    with pytest.raises(ValueError, match="no gap"):
        gpu_estimate.measure(gpu_estimate.GpuEstimate(measured=record))


def test_width_of_a_scaled_model_is_checked():
    with pytest.raises(ValueError, match="multiple of three heads, 192; got 100"):
        proportioned(2, width=100, head=64, vocabulary=64)


def test_a_process_of_its_own_returns_value_and_peak():
    value, peak = apart(doubled, Settings(seed=4))
    assert value == 8
    assert peak > 2**25


def doubled(settings):
    return 2 * settings.seed
