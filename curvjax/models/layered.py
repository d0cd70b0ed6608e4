"""A decoder as the curvature engine wants it: pure functions of arrays, one layer at a time."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import PyTreeDef
from jaxtyping import Array, Float, Key

from curvjax.curvature.layered import LayeredLoss, LayeredModel
from curvjax.data.batch import Batch
from curvjax.models.decoder import Decoder
from curvjax.models.linear import Linear


class _Spec(NamedTuple):
    """A module less its arrays; alike modules have equal ones. names: the arrays' paths, in the state's order."""

    graph: nnx.GraphDef
    structure: PyTreeDef
    names: tuple[str, ...]


def layered_model(model: Decoder | LayeredModel) -> LayeredModel:
    """The next-token cross-entropy of `model`, layer by layer, over `Batch`es; a layered model comes back as it is.

    Blocks are mappings from a parameter's path within its layer (`mlp.up_proj.kernel`) to its array.
    """
    if isinstance(model, LayeredModel):
        return model
    shell = nnx.clone(model)
    shell.layers = nnx.List([])
    shell_spec, outer = _split(shell)
    parts = [_split(block) for block in model.layers]
    loss = LayeredLoss(
        embed=_Embed(shell_spec),
        block=_block,
        readout=_Readout(shell_spec),
        loss=cross_entropy,
        sample=_sample,
        count=_count,
        draw=_draw,
        taps=_taps,
    )
    return LayeredModel(loss, tuple(spec for spec, _ in parts), [weights for _, weights in parts], outer)


def cross_entropy(logits: Float[Array, "B T V"], batch: Batch) -> Float[Array, ""]:
    """Summed next-token cross-entropy of the counted tokens, nats."""
    target = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    return jnp.sum(batch.weights * (jax.nn.logsumexp(logits, axis=-1) - target))


class _Embed(NamedTuple):
    spec: _Spec

    def __call__(self, outer: Mapping[str, Array], batch: Batch) -> Array:
        return _merge(self.spec, outer).embed(batch.tokens, batch.positions)


class _Readout(NamedTuple):
    spec: _Spec

    def __call__(self, outer: Mapping[str, Array], x: Array, batch: Batch) -> Array:
        return _merge(self.spec, outer).readout(x)


def _block(spec: _Spec, weights: Mapping[str, Array], x: Array, batch: Batch) -> Array:
    return _merge(spec, weights)(x, batch.positions, batch.segments)


class _Tap:
    """A `Linear` that adds an offset to its output and shows its input."""

    def __init__(self, linear: Linear, offset: Array | None):
        self.linear, self.offset, self.input = linear, offset, None

    def __call__(self, x: Array) -> Array:
        self.input = x
        return self.linear(x) if self.offset is None else self.linear(x) + self.offset


def _taps(
    spec: _Spec, weights: Mapping[str, Array], x: Array, batch: Batch, offsets: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    block, taps = _merge(spec, weights), {}
    for path in spec.names:
        owner, _, name = path.removesuffix(".kernel").rpartition(".")
        parent = functools.reduce(getattr, owner.split("."), block) if owner else block
        if path.endswith(".kernel") and type(getattr(parent, name)) is Linear:
            taps[path] = _Tap(getattr(parent, name), offsets.get(path))
            object.__setattr__(parent, name, taps[path])  # past nnx, which would look for arrays in it
    y = block(x, batch.positions, batch.segments)
    return y, {path: tap.input for path, tap in taps.items()}


def _sample(key: Key[Array, ""], logits: Float[Array, "B T V"], batch: Batch) -> Float[Array, "B T V"]:
    """A root of the Hessian times random signs e: u = sqrt(w) (sqrt(p) e - p sqrt(p)'e), E[uu'] = w (diag p - pp')."""
    p = jax.nn.softmax(logits, axis=-1)
    half = jnp.sqrt(p) * jax.random.rademacher(key, p.shape, p.dtype)
    centred = half - p * jnp.sum(half, axis=-1, keepdims=True)
    return jnp.sqrt(batch.weights)[..., None] * centred


def _draw(key: Key[Array, ""], logits: Float[Array, "B T V"], batch: Batch) -> Batch:
    return batch._replace(targets=jax.random.categorical(key, logits, axis=-1).astype(batch.targets.dtype))


def _count(batch: Batch) -> Float[Array, ""]:
    return jnp.sum(batch.weights)


def _split(module: nnx.Module) -> tuple[_Spec, dict[str, Array]]:
    graph, state = nnx.split(module)
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    names = tuple(_dotted(path) for path, _ in leaves)
    return _Spec(graph, structure, names), {name: leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _merge(spec: _Spec, weights: Mapping[str, Array]) -> Any:
    return nnx.merge(spec.graph, jax.tree.unflatten(spec.structure, [weights[name] for name in spec.names]))


def _dotted(path: tuple[Any, ...]) -> str:
    parts = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path)
    return ".".join(str(part) for part in parts if part != "value")
