"""What brackets allow for the rounding of products is more than real products are off."""

import jax
import jax.numpy as jnp
import pytest

from curvjax.curvature import ggn_product, run_passes, unit_gradient, vectors
from curvjax.data import read_documents
from curvjax.layers import layer_units
from curvjax.models import load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.runs.text import TextSettings, packed_text

pytestmark = [pytest.mark.oracle, pytest.mark.demo_model]


@pytest.fixture(scope="module")
def subject():
    loaded = load_model("smollm2-135m")
    text = packed_text(read_documents("demo:squad"), loaded, TextSettings(tokens=128, length=128), source="demo")
    model = layered_model(loaded.model)
    return model, run_passes(model, [text.batch]), layer_units(parameters(loaded.model))


@pytest.mark.parametrize("index", [0, 20, 29])
def test_products_of_a_real_model_are_within_what_brackets_allow(subject, index):
    """C(3v) / 3 and C v differ by two roundings; v is near the largest eigenvector, where they are largest."""
    model, passes, units = subject
    product, v = ggn_product(model, passes, units[index]), unit_gradient(model, passes, units[index])
    for _ in range(6):
        v = vectors.unit(product(vectors.unit(v)))
    once = product(v)
    thrice = product(jax.tree.map(lambda x: 3 * x, v))
    off = jax.tree.map(lambda x, y: x / 3 - y, thrice, once)
    largest = jnp.sqrt(vectors.dot(once, once))
    assert 0 < jnp.sqrt(vectors.dot(off, off)) < vectors.rounding(v) * largest
