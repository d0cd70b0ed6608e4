"""Gains made up from the units' places, where what counts is how they are kept and not what they are."""

import jax
import numpy as np

from curvjax.curvature import Gain, GainStatus, StepPromise, UnitGain
from curvjax.curvature.promise import Decrease
from curvjax.surgery import lora_parameters, with_lora_parameters
from curvjax.training import Fitted, TrainCost

STATUS_OPEN_ENDED = 123.0  # a damping that makes the stand-in of layer 5 lose its bracket


def stand_in_gains(model, passes, units, *, damping, grid, rtol, max_iterations, probes, seed, radii=(), fresh=None):
    for unit in units:
        lost = unit.index == 5 and STATUS_OPEN_ENDED in grid
        gains = _gain([0.5], unit.index, lost), _gain(grid, unit.index)
        steps = _steps(radii, unit.index, lost) if radii else None
        yield UnitGain(unit, 10, 1.0, 2.0 + unit.index, 3.0, 0.1, *gains, steps)


def _steps(radii, index, lost):
    """Every step keeps 0.8 of its promise, so that the longest is chosen."""
    promised, decrease = np.ones(len(radii)), (Decrease(0.8, 0.1),) * len(radii)
    dampings = 0.5 * np.max(radii) / np.asarray(radii)
    return StepPromise(np.asarray(radii), _gain(dampings, index, lost), promised, decrease, None, 0.1)


def drawn_gradients(model, parts, kernels):
    """In place of the whole model's gradient, which takes long to compile: drawn numbers, in half a second."""
    keys = jax.random.split(jax.random.key(1), len(kernels))
    return {path: jax.random.normal(key, kernels[path].shape) for key, path in zip(keys, kernels, strict=True)}, 0.5


def _gain(dampings, index, lost=False):
    tau = np.asarray(dampings, float)
    value = np.full(tau.shape, np.nan if lost else 1.0 + index)
    status = np.full(tau.shape, GainStatus.NEGATIVE_CURVATURE if lost else GainStatus.CONVERGED)
    scalars = np.asarray(4), np.asarray(0.1), np.asarray(1.0), np.asarray(0.0)
    return Gain(value, value, tau, np.ones(tau.shape), status, *scalars)


def stand_in_fit(model, batch, *, steps, seed, progress, directory=None, **settings):
    """Adapters drawn at random, and a directory as the real one leaves it, but empty."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    learned = lora_parameters(model).items()
    drawn = {path: jax.device_put(rng.normal(size=a.shape).astype(a.dtype)) for path, a in learned}
    progress(steps, steps)
    losses, none = np.zeros(steps, np.float32), np.zeros(0)
    return Fitted(with_lora_parameters(model, drawn), losses, none, none.astype(int), steps, 0, TrainCost(0, np.nan))
