import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.curvature import GainStatus, absolute, each_layer_gain, layer_gain, run_passes, unit_gradient
from curvjax.curvature.finite import not_finite
from curvjax.curvature.layered import LayeredLoss, LayeredModel
from curvjax.layers import Unit

LAYERS, WIDTH = 4, 3


def block(_, weights, x, batch):
    return x + jnp.sqrt(weights["shift"][None]) * 0.0 + jnp.tanh(x @ weights["kernel"])


LOSS = LayeredLoss(
    embed=lambda outer, batch: batch + outer["offset"][None],
    block=block,
    readout=lambda outer, x, batch: x * outer["scale"][None],
    loss=lambda z, batch: 0.5 * jnp.sum(z * z),
    sample=lambda key, z, batch: jax.random.rademacher(key, z.shape, z.dtype),
    count=lambda batch: jnp.asarray(float(batch.shape[0])),
    draw=None,
    taps=None,
)
BATCH = jnp.asarray(np.random.default_rng(1).normal(size=(2, WIDTH)))


def model(**changed):
    """Blocks of ones and outer arrays, but for `changed`: `layer, path -> array`."""
    blocks = [{"kernel": 0.1 * jnp.eye(WIDTH), "shift": jnp.ones(WIDTH)} for _ in range(LAYERS)]
    outer = {"offset": jnp.zeros(WIDTH), "scale": jnp.ones(WIDTH)}
    for place, value in changed.items():
        path, _, layer = place.partition("_")
        (blocks[int(layer)] if layer else outer)[path] = value
    return LayeredModel(LOSS, ("block",) * LAYERS, blocks, outer)


def unit(k, *paths):
    return Unit(f"layers.{k}", k, tuple(f"layers.{k}.{path}" for path in paths))


def test_the_first_array_that_is_not_finite_is_named():
    good, bad = jnp.ones((2, 3)), jnp.asarray([1.0, jnp.nan, -jnp.inf])
    assert not not_finite({"a": good, "b": [good, jnp.ones(2, jnp.int32)]})
    assert not_finite({"a": good, "b": {"c.d": bad}, "e": bad}) == "b.c.d has 2 of 3 values that are not finite"


NAN = jnp.asarray([1.0, jnp.nan, 1.0])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"scale": NAN}, r"tokens is nan: scale has 1 of 3 values that are not finite\."),
        ({"shift_2": NAN, "shift_3": NAN}, r"tokens is nan: layers\.2\.shift has 1 of 3 values that"),
        ({"shift_1": -jnp.ones(WIDTH)}, r"all weights are finite, but the output of layers\.1 is not; use a wider"),
        ({"offset": jnp.full(WIDTH, 1e200)}, r"is inf: all weights and all layers' outputs are finite, but logits or"),
    ],
)
def test_a_loss_that_is_not_finite_is_traced_to_its_tensor(changed, match):
    with pytest.raises(ValueError, match=match):
        run_passes(model(**changed), [BATCH])


def test_an_embedding_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="all weights are finite, but the embedding is not"):
        run_passes(model(), [BATCH * jnp.nan])


def test_a_gradient_that_is_not_finite_is_traced_to_its_tensor_and_layer():
    """The loss is finite; going backward, layer 2's square root is infinitely steep at 0, times 0."""
    broken = model(shift_2=jnp.zeros(WIDTH))
    passes = run_passes(broken, [BATCH])
    with pytest.raises(ValueError, match=r"gradient of 'layers\.2' is not finite: shift has 3 of 3 .* in layers\.2\."):
        unit_gradient(broken, passes, unit(2, "kernel", "shift"))
    assert not not_finite(unit_gradient(broken, passes, unit(2, "kernel")))
    steep = broken._replace(
        loss=LOSS._replace(block=lambda _, w, x, batch: block(_, w, x + 0 * jnp.sqrt(0 * x), batch))
    )
    passes = run_passes(steep, [BATCH])
    with pytest.raises(ValueError, match=r"gradient of 'layers\.1' is not finite: .* It begins in layers\.3\."):
        unit_gradient(steep, passes, unit(1, "kernel"))
    steep = model()._replace(loss=LOSS._replace(loss=lambda z, batch: jnp.sum(z * z) + jnp.sum(jnp.sqrt(0 * z))))
    with pytest.raises(ValueError, match="It begins in the readout"):
        unit_gradient(steep, run_passes(steep, [BATCH]), unit(3, "kernel"))


def test_a_unit_without_gradient_gains_nothing():
    frozen = model(shift_1=jnp.ones(WIDTH))
    passes = run_passes(frozen, [BATCH])
    for settings in ({}, {"damping": absolute(1e-3)}):
        (row,) = each_layer_gain(frozen, passes, [unit(1, "shift")], grid=[1.0], probes=2, **settings)
        assert row.gradient_norm2 == 0
        for gain in (row.gain, row.grid):
            assert gain.status.tolist() == [GainStatus.CONVERGED]
            assert gain.lower.tolist() == gain.upper.tolist() == gain.step_norm.tolist() == [0.0]


def test_a_zero_gradient_is_a_zero_gain_at_any_damping():
    for damping in (1e-300, 1.0):
        gain = layer_gain(lambda v: v, jnp.zeros(3), damping=damping)
        assert (gain.status, gain.lower, gain.upper, gain.step_norm) == (GainStatus.CONVERGED, 0.0, 0.0, 0.0)


def test_units_without_parameters_or_norm_are_refused_by_name():
    still = model(kernel_1=jnp.zeros((WIDTH, WIDTH)))
    passes = run_passes(still, [BATCH])
    with pytest.raises(ValueError, match=r"unit 'layers\.1' has no parameters: leave it out"):
        next(each_layer_gain(still, passes, [unit(1)]))
    with pytest.raises(
        ValueError, match=r"unit 'layers\.1': the norm .* positive and finite, got 0\.0\. Choose another"
    ):
        next(each_layer_gain(still, passes, [unit(1, "kernel")]))
    (row,) = each_layer_gain(still, passes, [unit(1, "kernel")], damping=absolute(1.0), rtol=1e-3)
    assert row.gain.status.tolist() == [GainStatus.CONVERGED]
