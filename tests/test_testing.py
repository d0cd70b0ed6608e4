import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.testing import dense_gain, dense_ggn, dense_matrix, tiny_model, tiny_scores, tiny_texts
from tests.curvature.problems import SPECTRA, exact_gain, gradient, symmetric


def test_tiny_scores_are_exact_gains_in_layer_order():
    scores = tiny_scores(np.arange(1.0, 13.0))
    assert [unit.name for unit in scores.units] == [f"layers.{k}" for k in range(12)]
    assert scores.bounded
    assert scores.values.tolist() == scores.lower.tolist() == scores.upper.tolist() == list(range(1, 13))
    assert {unit.shape.weights for unit in scores.units} == {16 * 40}


def test_the_tiny_model_knows_the_words_of_its_texts():
    loaded, documents = tiny_model(layers=2), tiny_texts(3)
    assert loaded.origin.layers == len(loaded.model.layers) == 2
    assert len({document.text for document in documents}) == 3
    assert min(min(loaded.tokenizer.encode(document.text)) for document in documents) > 1  # none is unknown
    assert tiny_model(layers=2, seed=2).sha256 != loaded.sha256 == tiny_model(layers=2).sha256


def test_matrix_of_a_product_on_pytrees():
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)))

    def matvec(v):
        out = matrix @ jnp.concatenate([v["a"], v["b"]])
        return {"a": out[:2], "b": out[2:]}

    np.testing.assert_allclose(dense_matrix(matvec, {"a": jnp.zeros(2), "b": jnp.zeros(3)}), matrix)


def test_ggn_of_a_quadratic_loss_is_its_hessian():
    design = jnp.asarray(np.random.default_rng(2).normal(size=(7, 3)))
    found = dense_ggn(lambda w: design @ w, jnp.zeros(3), output_hessian=lambda z: jnp.eye(z.size))
    np.testing.assert_allclose(found, jax.hessian(lambda w: 0.5 * jnp.sum((design @ w) ** 2))(jnp.zeros(3)), rtol=1e-12)


def test_gain_by_cholesky():
    matrix, grad = symmetric(SPECTRA["decay"], 1), gradient(24, 1)
    found = dense_gain(jnp.asarray(matrix), jnp.asarray(grad), damping=1e-3)
    assert found == pytest.approx(exact_gain(matrix, grad, 1e-3), rel=1e-9)


def test_indefinite_matrix_gives_nan():
    assert jnp.isnan(dense_gain(-jnp.eye(2), jnp.ones(2), damping=0.5))


def test_large_blocks_are_refused():
    with pytest.raises(ValueError, match="10000 parameters; the dense route takes at most 8192"):
        dense_matrix(lambda v: v, jnp.zeros(10_000))
    with pytest.raises(ValueError, match="use layer_gain"):
        dense_ggn(lambda v: v, jnp.zeros(10_000), output_hessian=lambda z: jnp.eye(z.size))
