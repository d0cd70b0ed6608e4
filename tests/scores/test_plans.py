from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.layers import module_units
from curvjax.scores.augmented_hessians import augmented_hessians
from curvjax.scores.global_threshold import counts_below
from curvjax.scores.lamp import lamp
from curvjax.scores.magnitude import magnitude_global
from curvjax.scores.rdp import rdp
from curvjax.scores.welore import welore
from tests.scores.problems import arrays_of, draw, of_kernels

WEIGHTS = 8 * 6 + 12 * 8
SHARES = [0.0, 0.137, 0.5, 0.9, 0.999, 1.0]


def lamp_scores(kernel):
    """By its definition, with a loop over the weights."""
    squares = np.sort(kernel.ravel() ** 2)
    return [square / squares[i:].sum() for i, square in enumerate(squares)]


def removed(scores, count):
    """Share of each unit among the `count` smallest of all."""
    owner = np.concatenate([np.full(len(part), k) for k, part in enumerate(scores)])
    gone = owner[np.argsort(np.concatenate(scores), kind="stable")[:count]]
    return [np.sum(gone == k) / len(part) for k, part in enumerate(scores)]


@pytest.mark.parametrize("total", SHARES)
def test_lamp_sorts_the_scores_of_the_whole_model(evidence, total):
    scores = [np.concatenate([lamp_scores(w) for w in arrays_of(evidence, "kernels", k)]) for k in range(12)]
    found = lamp(evidence, total=total)
    np.testing.assert_allclose(found, removed(scores, round(total * 12 * WEIGHTS)), rtol=1e-9, atol=1e-12)
    assert abs(float(jnp.sum(found)) * WEIGHTS - total * 12 * WEIGHTS) <= 0.5 + 1e-9


@pytest.mark.parametrize("total", SHARES)
def test_magnitude_sorts_the_weights_of_the_whole_model(evidence, total):
    scores = [np.concatenate([np.abs(w).ravel() for w in arrays_of(evidence, "kernels", k)]) for k in range(12)]
    found = magnitude_global(evidence, total=total)
    np.testing.assert_allclose(found, removed(scores, round(total * 12 * WEIGHTS)), rtol=1e-9, atol=1e-12)


def test_lamp_leaves_one_weight_in_each_matrix():
    rng = np.random.default_rng(1)
    kernels = [scale * rng.normal(size=(5, 4)) for scale in (1e-6, 1.0, 1e6)]
    np.testing.assert_allclose(lamp(of_kernels(*kernels), total=57 / 60), np.full(3, 19 / 20))
    np.testing.assert_allclose(magnitude_global(of_kernels(*kernels), total=2 / 3), [1.0, 1.0, 0.0])


def test_equal_weights_still_meet_the_total():
    found = of_kernels(np.ones((5, 4)), np.ones((5, 4)), np.zeros((5, 4)))
    np.testing.assert_allclose(magnitude_global(found, total=0.55), [0.65, 0.0, 1.0])
    np.testing.assert_allclose(lamp(found, total=1 / 3), [0.0, 0.0, 1.0])  # zeros go first


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_have_the_sum_and_respect_the_order(seed):
    rng = np.random.default_rng(seed)
    scores = [rng.integers(0, 6, size=n).astype(float) for n in (5, 9, 1, 7)]
    whole = np.sort(np.concatenate(scores))
    for count in range(23):
        found = counts_below(scores, count=count)
        assert found.sum() == count
        taken = np.sort(np.concatenate([np.sort(part)[:n] for part, n in zip(scores, found, strict=True)]))
        np.testing.assert_array_equal(taken, whole[:count])


@pytest.mark.parametrize("total", [0.0, 1.0, 60.0, 168.0])
def test_welore_keeps_the_ranks_above_one_threshold(evidence, total):
    values = []
    for k in range(12):
        spectra = [np.linalg.svd(w, compute_uv=False) for w in arrays_of(evidence, "kernels", k)]
        values.append(np.concatenate([(s - s.min()) / (s.max() - s.min()) for s in spectra]))
    found = welore(evidence, total=total)
    gone = removed(values, 168 - int(total))
    np.testing.assert_allclose(found, [14 * (1 - share) for share in gone], rtol=1e-9, atol=1e-9)
    assert float(jnp.sum(found)) == total


def test_equal_singular_values_are_large_and_zeros_small():
    found = welore(of_kernels(np.eye(4), np.zeros((4, 4)), np.diag([4.0, 3.0, 2.0, 1.0])), total=5.0)
    np.testing.assert_array_equal(found, [4, 0, 1])


def path(*points):
    """Evidence of a stream whose mean over tokens takes these points."""
    points = np.asarray(points, float)
    spread = np.random.default_rng(1).normal(size=(1, 6, points.shape[1]))
    stream = points[:, None] + spread - spread.mean(axis=1, keepdims=True)
    return draw(1, layers=len(points) - 1)._replace(stream=jnp.asarray(stream))


def test_the_corners_of_a_path_are_adapted():
    corner = path(*[(i, 0) for i in range(6)], *[(5, i) for i in range(1, 8)])  # turns at point 5, after layer 4
    np.testing.assert_array_equal(np.flatnonzero(rdp(corner, total=2.0)), [4, 11])
    np.testing.assert_array_equal(np.flatnonzero(rdp(corner, total=1.0)), [11])


@pytest.mark.parametrize("total", range(13))
def test_as_many_layers_as_asked_and_nested(evidence, total):
    found = np.asarray(rdp(evidence, total=float(total)))
    assert found.sum() == total
    assert total == 0 or (found >= np.asarray(rdp(evidence, total=total - 1.0))).all()


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 3.0])
def test_a_tolerance_chooses_the_same_points_as_the_recursion(tolerance):
    """On a plane zigzag of falling height, whose sections fall in distance, both are the same algorithm."""

    def recursion(points, first, last):
        chord = points[last] - points[first]
        inner = range(first + 1, last)
        offsets = [points[i] - points[first] for i in inner]
        distance = [abs(chord[0] * y - chord[1] * x) / np.linalg.norm(chord) for x, y in offsets]
        if not distance or max(distance) <= tolerance:
            return {last}
        middle = first + 1 + int(np.argmax(distance))
        return recursion(points, first, middle) | recursion(points, middle, last)

    rng = np.random.default_rng(1)
    points = np.stack([np.arange(13.0), rng.normal(size=13) * 4 ** np.linspace(1.5, 0, 13)], axis=1)
    expected = sorted(point - 1 for point in recursion(points, 0, 12))
    np.testing.assert_array_equal(np.flatnonzero(rdp(path(*points), total=float(len(expected)))), expected)


def test_a_constant_stream_is_taken_from_the_front_after_its_end():
    still = draw(1)._replace(stream=jnp.ones((13, 4, 3)))
    np.testing.assert_array_equal(np.flatnonzero(rdp(still, total=4.0)), [0, 1, 2, 11])


def test_of_equal_distances_the_first_is_taken():
    there_and_back = np.array([0, 1, 2, 3, 4, 3, 2, 1, 0.0])  # straight but for its turning point
    evidence = draw(1, layers=8)._replace(stream=jnp.asarray(there_and_back[:, None, None]))
    np.testing.assert_array_equal(np.flatnonzero(rdp(evidence, total=3.0)), [0, 3, 7])


def test_the_parts_of_a_layer_are_adapted_together(evidence):
    parts = evidence._replace(units=module_units(name for name in evidence.kernels if name != "head.kernel"))
    np.testing.assert_array_equal(rdp(parts, total=5.0), jnp.repeat(rdp(evidence, total=5.0), 2))


@pytest.mark.parametrize("total", range(13))
def test_each_unit_costs_least_after_those_before(evidence, total):
    energy = np.asarray(evidence.interactions)
    chosen = []
    for _ in range(total):
        costs = {k: energy[np.ix_([*chosen, k], [*chosen, k])].sum() for k in range(12) if k not in chosen}
        chosen.append(min(costs, key=costs.get))
    np.testing.assert_array_equal(np.flatnonzero(augmented_hessians(evidence, total=float(total))), sorted(chosen))


def test_without_interactions_the_least_sensitive_go(evidence):
    energy = jnp.diag(jnp.diagonal(evidence.interactions))
    found = augmented_hessians(evidence._replace(interactions=energy), total=5.0)
    assert set(np.flatnonzero(found).tolist()) == set(np.argsort(np.diag(energy))[:5].tolist())


def test_only_the_symmetric_part_of_the_interactions_counts(evidence):
    skew = np.triu(np.random.default_rng(1).normal(size=(12, 12)), 1) * 50
    turned = evidence._replace(interactions=evidence.interactions + skew - skew.T)
    for total in range(13):
        found = augmented_hessians(turned, total=float(total))
        np.testing.assert_array_equal(found, augmented_hessians(evidence, total=float(total)))


def test_edits_that_cancel_are_made_together():
    pair = np.diag([1.0, 2.0, 2.0, 2.5, *[9.0] * 8])
    pair[0, 3] = pair[3, 0] = -1.5
    found = augmented_hessians(draw(1)._replace(interactions=jnp.asarray(pair)), total=2.0)
    assert np.flatnonzero(found).tolist() == [0, 3]
    best = min(combinations(range(12), 2), key=lambda both: pair[np.ix_(both, both)].sum())
    assert best == (0, 3)


@pytest.mark.parametrize("plan", [lamp, magnitude_global])
@pytest.mark.parametrize("total", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(evidence, plan, total):
    with pytest.raises(ValueError, match="must be a share from 0 to 1, got"):
        plan(evidence, total=total)


@pytest.mark.parametrize(("plan", "most"), [(rdp, 12), (augmented_hessians, 12), (welore, 168)])
@pytest.mark.parametrize("total", [-1.0, 2.5, 169.0, float("nan")])
def test_a_number_that_is_not_whole_or_too_large_is_refused(evidence, plan, most, total):
    with pytest.raises(ValueError, match=f"must be a whole number from 0 to {most}, got"):
        plan(evidence, total=total)
