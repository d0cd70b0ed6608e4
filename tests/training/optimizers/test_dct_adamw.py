"""DCT-AdamW against scipy's transform and Adam in NumPy."""

import numpy as np
import pytest
from scipy.fft import dct

from curvjax.training import DCTAdamW, state_size
from curvjax.training.optimizers.dct_adamw import dct_basis

from .conftest import RATE, Adam, drawn, on_device, steps

SHAPES = {"wide": (4, 9), "tall": (9, 4), "vector": (5,), "experts": (2, 9, 4)}


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_basis_is_orthogonal_and_that_of_the_transform(size):
    basis = dct_basis(size)
    np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-14)
    rows = drawn(1, {"x": (3, size)})["x"]
    np.testing.assert_allclose(rows @ basis, dct(rows, norm="ortho", axis=1), atol=1e-13)


def published(array, gradients, rank, *, feedback):
    """The published steps of one tall matrix, column by column: Adam for each column while it is chosen."""
    basis, moments, left = dct(np.eye(array.shape[1]), norm="ortho", axis=1), {}, np.zeros_like(array)
    for step, gradient in enumerate(gradients, start=1):
        whole = gradient + left if feedback else gradient
        coefficients = whole @ basis
        chosen = np.argsort(-np.abs(coefficients).sum(0))[:rank]
        moments = {column: moments.get(column, (0.0, 0.0)) for column in chosen}
        update, kept = np.zeros_like(array), np.zeros_like(array)
        for column in chosen:
            m, v = moments[column]
            g = coefficients[:, column]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[column] = m, v
            low = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
            update += np.outer(low, basis[:, column])
            kept += np.outer(g, basis[:, column])
        left = whole - kept
        array = array - RATE * (update + 0.1 * array)
    return array


@pytest.mark.parametrize("feedback", [False, True])
def test_steps_are_adams_in_the_columns_of_largest_norm(terms, feedback):
    trained, gradients = drawn(1, SHAPES), [drawn(seed, SHAPES) for seed in range(2, 7)]
    found, state = steps(DCTAdamW(share=0.5, error_feedback=feedback), terms, trained, gradients)
    end = found[-1]
    expected = {
        "wide": published(trained["wide"].T, [g["wide"].T for g in gradients], 2, feedback=feedback).T,
        "tall": published(trained["tall"], [g["tall"] for g in gradients], 2, feedback=feedback),
        "experts": np.stack([
            published(trained["experts"][at], [g["experts"][at] for g in gradients], 2, feedback=feedback)
            for at in range(2)
        ]),
    }
    for name, array in expected.items():
        np.testing.assert_allclose(end[name], array, rtol=1e-9, atol=1e-12)
    adam, vector = Adam(), trained["vector"]
    for gradient in gradients:
        vector = vector - RATE * (adam.direction(gradient["vector"]) + 0.1 * vector)
    np.testing.assert_allclose(end["vector"], vector, rtol=1e-10)
    low, matrices, chosen, counters = 2 * (4 * 9 * 2 + 5), 4 * 9 * 4, 4 * 2, 2  # of 4 matrices with 9 rows
    assert state_size(state) == low + chosen + counters + (matrices if feedback else 0)


def test_columns_change_and_all_of_them_make_the_gradients_whole(terms):
    """Error feedback loses nothing: chosen parts and the residue add up to all gradients."""
    shape, total = {"m": (9, 4)}, 0.0
    optimizer = DCTAdamW(share=0.25, error_feedback=True).transformation(terms)
    trained = on_device(drawn(1, shape))
    state, columns = optimizer.init(trained), []
    for seed in range(2, 8):
        gradient = on_device(drawn(seed, shape))
        before = state[0].residue["m"]
        _, state = optimizer.update(gradient, state, trained)
        columns.append(int(state[0].columns["m"][0]))
        basis = dct_basis(4)[:, columns[-1:]]
        passed = (gradient["m"] + before) @ basis @ basis.T
        total += gradient["m"] - passed
        np.testing.assert_allclose(state[0].residue["m"], total, atol=1e-12)
    assert len(set(columns)) > 1


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=rf"share must be in \(0, 1\], .*; got {share}"):
        DCTAdamW(share=share)
