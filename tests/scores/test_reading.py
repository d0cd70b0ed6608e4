import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.scores.reading import matrices, require_evidence, score_vector


def test_only_the_paths_of_the_unit_are_its_matrices(evidence):
    unit = evidence.units[10]
    found = matrices("any", evidence, unit, "kernels", "moments")
    assert len(found) == 2  # neither the norm nor the head
    for (kernel, moment), path in zip(found, unit.paths[:2], strict=True):
        np.testing.assert_array_equal(kernel, evidence.kernels[path])
        np.testing.assert_array_equal(moment, evidence.moments[path])


def test_half_precision_is_widened(evidence):
    unit = evidence.units[0]
    narrow = evidence._replace(kernels={path: w.astype(jnp.bfloat16) for path, w in evidence.kernels.items()})
    assert {kernel.dtype for (kernel,) in matrices("any", narrow, unit, "kernels")} == {jnp.dtype("float32")}


def test_a_unit_without_matrices_is_refused(evidence):
    bare = evidence.units[3]._replace(paths=("layers.3.norm.scale",))
    with pytest.raises(ValueError, match=r"'owl' finds none of the paths of unit 'layers.3' in 'kernels'"):
        matrices("owl", evidence, bare, "kernels")


def test_a_matrix_that_only_one_field_has_is_named(evidence):
    path = evidence.units[3].paths[1]
    moments = {name: moment for name, moment in evidence.moments.items() if name != path}
    with pytest.raises(ValueError, match=f"'owl': 'moments' lacks 1 matrices of unit 'layers.3', e.g. '{path}'"):
        matrices("owl", evidence._replace(moments=moments), evidence.units[3], "kernels", "moments")


def test_grams_in_the_order_of_the_sweep_are_refused(evidence):
    with pytest.raises(ValueError, match=r"'grams' has 'layers.11' where the units have 'layers.0'; sort them"):
        require_evidence("layerif", evidence._replace(grams=evidence.grams[::-1]), "grams")


def test_entries_must_be_as_many_as_units(evidence):
    with pytest.raises(ValueError, match="one entry of 'gains' per unit: 12 units, 11 entries"):
        require_evidence("gain", evidence._replace(gains=evidence.gains[:11]), "gains")


def test_a_stream_must_reach_the_units(evidence):
    with pytest.raises(ValueError, match=r"a stream of 11 layers has nothing for \['layers.11'\]"):
        require_evidence("rdp", evidence._replace(stream=evidence.stream[:-1]), "stream")


def test_a_value_that_is_not_finite_is_named(evidence):
    values = [1.0] * 10 + [float("nan"), float("inf")]
    with pytest.raises(ValueError, match=r"no finite value for 2 of 12 units, e.g. \['layers.10', 'layers.11'\]"):
        score_vector("any", evidence.units, values)
