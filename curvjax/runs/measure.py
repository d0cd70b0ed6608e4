"""What is measured of a model and how closely; and the gradient in whose time costs are quoted."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.curvature import LayeredModel, absolute, of_largest_eigenvalue, of_mean_eigenvalue, trust_radius
from curvjax.curvature.damping import LayerPolicy
from curvjax.curvature.layered import embedded, run_blocks
from curvjax.data import Batch, microbatches
from curvjax.layers import Unit, UnitShape, layer_index, layer_units, mapped_units, mlp_units, module_path, module_units
from curvjax.models import Decoder, parameters
from curvjax.models.layered import cross_entropy
from curvjax.records import read_json
from curvjax.surgery import coded_modules

POLICIES: dict[str, Callable[[float], LayerPolicy]] = {
    "trust-radius": trust_radius,
    "absolute": absolute,
    "relative-mean": of_mean_eigenvalue,
    "relative-largest": of_largest_eigenvalue,
}

BY_STEPS = ("promise", "held-out")
"""Policies that try the steps on the loss itself [M20]; `curvjax.runs.steps` makes their choice."""
STEPPING = ("ggn", "hessian")
"""Curvatures whose gains have such steps."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What is measured, and how closely; a score reads those of its own evidence."""

    curvature: Literal[
        "ggn", "hessian", "fisher-mc", "empirical-fisher", "empirical-fisher-tokens", "kfac", "ekfac", "diagonal"
    ] = "ggn"
    """C of the gain: ggn and hessian by certified Krylov runs, the others in closed form."""
    granularity: Literal["layer", "module", "mlp"] = "layer"
    """One score per decoder layer, per projection matrix, or per MLP (for channels)."""
    units: str = ""
    """JSON file {name: [parameter paths]} of units of your own, each within one layer; in place of the granularity."""
    policy: Literal["auto", "trust-radius", "absolute", "relative-mean", "relative-largest", "promise", "held-out"] = (
        "auto"
    )
    """How the damping is chosen; promise: that of the longest step of --radii that keeps --keep of its promise;
    held-out: that of the largest decrease on the fresh text; auto: promise where there are steps to try (ggn, hessian),
    else trust-radius."""
    damping: float = 0.02
    """The policy's number: a share of |theta_k|, of an eigenvalue, or the damping itself."""
    promise: bool = False
    """Try the Newton steps of --radii on the loss itself: what they promise, and what became of it."""
    radii: tuple[float, ...] = (0.01, 0.005, 0.002, 0.001, 0.0005)
    """Lengths of these steps, shares of |theta_k|."""
    keep: float = 0.75
    """Share of its promise that a step must keep for the policy promise."""
    common: bool = True
    """One radius for all units, in the policies promise and held-out: gains of unequal steps are no order of units."""
    grid: tuple[float, ...] = (10.0, 1.0, 0.1, 0.01)
    """Further absolute dampings, read off the same run."""
    rtol: float = 0.05
    """Relative gap between the bounds of each gain."""
    max_products: int = 100
    """Most curvature products for one unit."""
    rows: int = 0
    """Rows in memory at a time; 0: all of them."""
    recompute: bool = False
    """Keep no block linearisations: memory of one block instead of all, about twice the time."""
    probes: int = 4
    """Random draws: of the trace estimate, of labels, or of the outputs' side of Kronecker factors."""
    stream_tokens: int = 512
    """Most tokens whose residual stream is kept."""
    directions: int = 4
    """Random directions of the slopes of each unit."""
    step: float = 1e-3
    """Half the distance of the two losses of a slope, in standard deviations of the direction."""
    orders: int = 4
    """Orders of layers, each with its reverse, of Shapley contributions; at least 2, for a standard error."""
    group: int = 64
    """Inputs that share a scale where plans of bits look at rounding; -1: all; with --outcome that of its method."""
    seed: int = 0
    """Of tokens, directions, probes and orders."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("damping", "rtol", "max_products", "stream_tokens", "directions", "step"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be positive, got {getattr(self, name)!r}."
                raise ValueError(msg)
        if self.rows < 0 or min(self.probes, self.orders) < 2:
            msg = (
                f"need rows >= 0, probes >= 2 and orders >= 2, got rows {self.rows}, {self.probes} probes and "
                f"{self.orders} orders."
            )
            raise ValueError(msg)
        if not self.radii or min(self.radii) <= 0 or not 0 < self.keep <= 1:
            msg = f"need positive radii and keep within (0, 1], got {self.radii} and {self.keep!r}."
            raise ValueError(msg)
        if self.tried and self.curvature not in STEPPING:
            msg = f"curvature {self.curvature!r} has gains in closed form and no steps to try; take ggn or hessian."
            raise ValueError(msg)
        self.layer_policy()

    def settled(self) -> "ScoreSettings":
        """The same with the policy that `auto` stands for, so that records say what it was."""
        if self.policy != "auto":
            return self
        return replace(self, policy="promise" if self.curvature in STEPPING else "trust-radius")

    def layer_policy(self) -> LayerPolicy:
        """What the Krylov runs are certified at; for policies by steps the longest, so that the shorter are too."""
        policy = self.settled().policy
        return trust_radius(max(self.radii)) if policy in BY_STEPS else POLICIES[policy](self.damping)

    @property
    def tried(self) -> tuple[float, ...]:
        """The radii whose steps are tried; none if that was not asked for."""
        return self.radii if self.promise or self.settled().policy in BY_STEPS else ()

    @property
    def partition(self) -> str:
        """What the units are: those of a granularity, or the user's own."""
        return "custom" if self.units else self.granularity

    @property
    def damping_words(self) -> str:
        """The policy and its number."""
        policy = self.settled().policy
        return policy.replace("-", " ") + {"promise": f" {self.keep:g}", "held-out": ""}.get(
            policy, f" {self.damping:g}"
        )


def scored_units(model: Decoder | LayeredModel, settings: ScoreSettings) -> tuple[Unit, ...]:
    """What receives one score each, in layer order.

    Raises:
      KeyError: if the user's units name a parameter that the model lacks.
      ValueError: if the model has no such unit, some of it are codes, or the user's units do not partition
        parameters within layers.
    """
    paths = parameters(model)
    if isinstance(model, Decoder) and (coded := coded_modules(model)):
        msg = (
            f"{next(iter(coded))} and {len(coded) - 1} others are codes, which have no gradient: measure the model's "
            "dense form, the directory that `curvjax quantize` leaves around the checkpoint."
        )
        raise ValueError(msg)
    if settings.units:
        groups = read_json(settings.units) if Path(settings.units).is_file() else None
        shapes = isinstance(groups, dict) and all(isinstance(group, list) for group in groups.values())
        if not shapes or not all(isinstance(path, str) for group in groups.values() for path in group):
            msg = f"{settings.units} must be a JSON file {{name: [parameter paths]}}, such as {list(paths)[:2]}."
            raise ValueError(msg)
        return mapped_units(groups, paths)
    if isinstance(model, LayeredModel) and settings.granularity == "module":
        matrices = [path for path, value in paths.items() if layer_index(path) >= 0 and value.ndim >= 2]
        return mapped_units({path: [path] for path in matrices}, paths)
    grouped, what = {
        "layer": (layer_units, "decoder layer"),
        "module": (module_units, "projection matrix"),
        "mlp": (mlp_units, "MLP"),
    }[settings.granularity]
    units = grouped(paths)
    if not units:
        msg = f"the model has no {what} to measure."
        raise ValueError(msg)
    return units


def unit_shapes(model: Decoder | LayeredModel, units: Iterable[Unit]) -> tuple[UnitShape, ...]:
    """What programs look at in units of a model."""
    values, projections = parameters(model), _stacked if isinstance(model, LayeredModel) else _plain
    return tuple(_shape(unit, {path: values[path] for path in unit.paths}, projections) for unit in units)


Projections = dict[str, tuple[int, int]]


def _plain(values: Mapping[str, jax.Array]) -> Projections:
    return {module_path(path): (value.shape[0], value.shape[1]) for path, value in values.items() if value.ndim == 2}


def _stacked(values: Mapping[str, jax.Array]) -> Projections:
    """By the parameters' own paths, several of which may be one module's; of experts in one array each is a matrix."""
    return {
        path + "".join(f"[{i}]" for i in place): (value.shape[-2], value.shape[-1])
        for path, value in values.items()
        if value.ndim >= 2
        for place in np.ndindex(*value.shape[:-2])
    }


def _shape(
    unit: Unit, values: Mapping[str, jax.Array], of: Callable[[Mapping[str, jax.Array]], Projections]
) -> UnitShape:
    norm2 = sum(float(np.sum(np.square(np.asarray(value, np.float64)))) for value in values.values())
    count = sum(value.size for value in values.values())
    return UnitShape(unit.name, unit.index, of(values), count, float(np.sqrt(norm2)))


def split_rows(batch: Any, rows: int) -> list[Any]:
    """The batch in parts of `rows` rows; whole for 0. Of a pytree that is no `Batch` the last part may be smaller."""
    if not rows:
        return [batch]
    if isinstance(batch, Batch):
        return list(microbatches(batch, rows))
    size = len(jax.tree.leaves(batch)[0])
    return [jax.tree.map(lambda a: a[start : start + rows], batch) for start in range(0, size, rows)]  # noqa: B023


def compiled_gradient(model: Decoder | LayeredModel) -> tuple[Callable[[Any, Any], Any], Any]:
    """The gradient of the summed loss in all parameters, `(state, batch) -> like state`, and the model's state."""
    if isinstance(model, LayeredModel):
        return _layered_gradient(model)
    graph, state = nnx.split(model)

    @jax.jit
    def gradient(state: nnx.State, part: Batch) -> nnx.State:
        def loss(state: nnx.State) -> jax.Array:
            model = nnx.merge(graph, state)
            return cross_entropy(model(part.tokens, positions_BT=part.positions, segments_BT=part.segments), part)

        return jax.grad(loss)(state)

    return gradient, state


def _layered_gradient(model: LayeredModel) -> tuple[Callable[[Any, Any], Any], Any]:
    """Of a layered model the state is its blocks and what is outside them."""
    loss = model.loss

    @jax.jit
    def gradient(state: Any, part: Any) -> Any:
        def summed(state: Any) -> jax.Array:
            blocks, outer = state
            x = run_blocks(model, blocks, 0, embedded(loss, outer, part), part)
            return loss.loss(loss.readout(outer, x, part), part)

        return jax.grad(summed)(state)

    return gradient, (list(map(dict, model.blocks)), model.outer)


def summed_gradient(gradient: Callable[[Any, Any], Any], state: Any, parts: Sequence[Any]) -> Any:
    """The gradient of the loss summed over all parts, by `compiled_gradient`."""
    total = gradient(state, parts[0])
    for part in parts[1:]:
        total = jax.tree.map(jnp.add, total, gradient(state, part))
    return total


def mean_gradients(
    model: Decoder | LayeredModel, summed: Any, parts: Sequence[Any], paths: Iterable[str]
) -> dict[str, jax.Array]:
    """Gradients of the mean loss, `path -> like the parameter`, from those of the sum over `parts`."""
    if isinstance(model, LayeredModel):
        blocks, outer = summed
        count = sum(float(model.loss.count(part)) for part in parts)
        found = parameters(model._replace(blocks=blocks, outer=outer))
    else:
        count = sum(float(part.weights.sum()) for part in parts)
        found = parameters(nnx.merge(nnx.split(model)[0], summed))
    return {path: found[path] / count for path in paths}


def full_gradient_seconds(model: Decoder | LayeredModel, batch: Any, rows: int) -> float:
    """Seconds of one compiled gradient of the mean loss in all parameters: the unit in which costs are quoted."""
    parts, (gradient, state) = split_rows(batch, rows), compiled_gradient(model)
    jax.block_until_ready(gradient(state, parts[0]))
    started = time.perf_counter()
    for part in parts:
        jax.block_until_ready(gradient(state, part))
    return time.perf_counter() - started
