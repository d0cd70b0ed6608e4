"""The layered engine: gradients and curvature products of one block at a time, through cached linearisations.

A decoder is `embed -> block_1 .. block_K -> readout -> loss`. All gains are taken at one point theta, so everything
that does not depend on the vector is computed once: the inputs of every block, the cotangents that reach it, and the
linearisation of every block in its input. The product of layer k with v is then

    v -> [J_k] -> [blocks k+1 .. K] -> [readout] -> S -> [readout]' -> [blocks K .. k+1]' -> [J_k]' -> C_k v

with tangents only: no layer below k, no forward pass and no weight gradient of any other layer. Blocks are dispatched
one by one from the host, so one compilation per *kind* of block serves all layers, and weights are never stacked.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from curvjax.curvature import vectors
from curvjax.curvature.finite import not_finite
from curvjax.curvature.linearized import Linearized, linearize, pull, push
from curvjax.layers import Unit, layer_prefix, split, within_layer

Weights = Mapping[str, Array]
Tree = TypeVar("Tree")


class LayeredLoss(NamedTuple):
    """A loss that runs through blocks in order; pure functions, hashable by identity.

    embed: `(outer, batch) -> x`. block: `(spec, weights, x, batch) -> x`, with `spec` static: alike blocks share one.
    readout: `(outer, x, batch) -> z`. loss: `(z, batch) -> []`, the *sum* over counted tokens, nats, convex in z.
    sample: `(key, z, batch) -> u` like z, with E[u u'] the Hessian of `loss` in z. count: `batch -> []` counted tokens.
    draw: `(key, z, batch) -> batch` with labels drawn from the model. taps: `(spec, weights, x, batch, offsets) -> (x,
    inputs)`: the block with `offsets[path]` added to what each linear map `path` puts out, and what comes into each of
    them; both mappings may leave linear maps out.

    The leading axis of x, z and of a batch's arrays counts the sequences, which do not see each other.
    """

    embed: Callable
    block: Callable
    readout: Callable
    loss: Callable
    sample: Callable
    count: Callable
    draw: Callable
    taps: Callable


class LayeredModel(NamedTuple):
    """A loss and the point at which it is studied.

    specs: `K` static descriptions. blocks: `K` mappings from a parameter's path within its layer to its array. outer:
    pytree of all other parameters.
    """

    loss: LayeredLoss
    specs: tuple[Hashable, ...]
    blocks: Sequence[Weights]
    outer: Any


class Pass(NamedTuple):
    """What one microbatch leaves behind at theta.

    inputs: `K + 1` residual streams, the last one into the readout. cotangents: `K` gradients of the summed loss with
    respect to each block's output. maps: `K` linearisations of the blocks in their inputs, and ends: those of the
    readout and of the loss's gradient in z; or empty: made anew at each use. value: summed loss.
    """

    batch: Any
    inputs: list[Any]
    cotangents: list[Any]
    maps: list[Linearized]
    ends: tuple[Linearized, ...]
    value: Float[Array, ""]


class Passes(NamedTuple):
    """All microbatches. count: `[]` N, the counted tokens of all. value: `[]` mean loss [M1], nats."""

    parts: list[Pass]
    count: Float[Array, ""]
    value: Float[Array, ""]


def run_passes(model: LayeredModel, batches: Iterable[Any], *, keep_maps: bool = True) -> Passes:
    """One forward and one backward pass over each microbatch, keeping what the products need.

    Args:
      model: the loss and its point.
      batches: microbatches; the mean is over the counted tokens of all of them.
      keep_maps: keep all linearisations (a product then costs its tangents only), or make them anew at each use: of
        each microbatch only the blocks' inputs and cotangents stay, and a product costs about twice as much.

    Raises:
      ValueError: if there is no microbatch or no counted token; if the loss is not finite, with what is so first.
    """
    parts = [_run_pass(model, batch, keep_maps=keep_maps) for batch in batches]
    count = float(sum(model.loss.count(part.batch) for part in parts))
    if not count > 0:
        msg = f"{len(parts)} microbatches hold {count:g} counted tokens; at least one is needed."
        raise ValueError(msg)
    value = float(sum(part.value for part in parts)) / count
    if not jnp.isfinite(value):
        msg = f"the mean loss over {count:g} tokens is {value}: {_origin_of_loss(model, parts)}."
        raise ValueError(msg)
    wide = jnp.result_type(float)
    return Passes(parts, jnp.asarray(count, wide), jnp.asarray(value, wide))


def unit_parameters(model: LayeredModel, unit: Unit) -> tuple[dict[str, Array], dict[str, Array]]:
    """The unit's own parameters, and those of the same block that stay fixed."""
    return split(model.blocks[unit.index], unit._replace(paths=tuple(map(within_layer, unit.paths))))


def unit_gradient(model: LayeredModel, passes: Passes, unit: Unit) -> dict[str, Array]:
    """g_k [M2]: gradient of the mean loss with respect to the unit's parameters.

    Raises:
      ValueError: if it is not finite; names the tensor, and the layer where this begins.
    """
    varied, fixed = unit_parameters(model, unit)
    k = unit.index
    shares = (
        _gradient(model.loss, model.specs[k], varied, fixed, part.inputs[k], part.batch, part.cotangents[k])
        for part in passes.parts
    )
    gradient = token_mean(passes, shares)
    if broken := not_finite(gradient):
        msg = f"the gradient of {unit.name!r} is not finite: {broken}. {_origin_of_gradient(passes, k)}."
        raise ValueError(msg)
    return gradient


def ggn_product(model: LayeredModel, passes: Passes, unit: Unit) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """The map v -> C_k v of the generalised Gauss-Newton block [M2], C_k = J_k' S J_k / N.

    Reads its linearisation of block k once; each product then costs one push and one pull through blocks k .. K and the
    readout, for every microbatch. Vectors have at least float32, whatever the network's precision.
    """
    varied, fixed = unit_parameters(model, unit)
    k = unit.index
    own = [_own_map(model.loss, model.specs[k], varied, fixed, part.inputs[k], part.batch) for part in passes.parts]
    weights = (varied, fixed)

    def share(part: Pass, linear: Linearized, vector: dict[str, Array]) -> dict[str, Array]:
        tangent = _push(linear, weights, vector)
        for j in range(k + 1, len(model.blocks)):
            tangent = push_block(model, part, j, tangent)
        cotangent = _curve(*head_ends(model, part), model.outer, tangent)
        for j in reversed(range(k + 1, len(model.blocks))):
            cotangent = pull_block(model, part, j, cotangent)
        return _pull(linear, weights, cotangent)

    def product(vector: dict[str, Array]) -> dict[str, Array]:
        return token_mean(passes, (share(part, linear, vector) for part, linear in zip(passes.parts, own, strict=True)))

    return product


def sampled_traces(model: LayeredModel, passes: Passes, key: Key[Array, ""]) -> list[dict[str, Array]]:
    """One unbiased draw of tr(C) for every parameter array of every block, from a single backward pass.

    With E[u u'] = S, tr(J_k' S J_k) = E |J_k' u|^2: Hutchinson's estimator on the outputs' side, so that one draw costs
    one backward pass for all layers, not one product per layer.

    Source: Hutchinson (1990), Comm. Stat. 19(2); Dangel et al. (2020), BackPACK, for the factor on the outputs' side.
    """
    traces = [{} for _ in model.blocks]
    for part, k, cotangent in sampled_cotangents(model, passes, key):
        block, x = model.blocks[k], part.inputs[k]
        squares = _squared_gradients(model.loss, model.specs[k], block, x, part.batch, cotangent)
        for path, square in squares.items():
            traces[k][path] = traces[k].get(path, 0.0) + square / passes.count
    return traces


def sampled_cotangents(model: LayeredModel, passes: Passes, key: Key[Array, ""]) -> Iterator[tuple[Pass, int, Any]]:
    """Yield `(part, k, cotangent)` from the last block to the first, for one draw of u with E[u u'] = S in each part.

    `cotangent` is u pulled back to the output of block k, so that the gradient g that block k's parameters get from it
    has E[g g'] = J_k' S J_k, the part's ggn before the division by N: one backward pass for all blocks. The draws
    belong to the sequences and their tokens: neither padding nor another split into microbatches changes them.
    """
    for part, first in zip(passes.parts, first_rows(passes), strict=True):
        yield from swept_cotangents(model, part, first, key)


def swept_cotangents(
    model: LayeredModel, part: Pass, first: int, key: Key[Array, ""]
) -> Iterator[tuple[Pass, int, Any]]:
    """Yield those of `sampled_cotangents` of one microbatch, whose first sequence has the number `first`."""
    head, _ = head_ends(model, part)
    cotangent = _sample(model.loss, model.outer, part.inputs[-1], part.batch, head, jnp.asarray(first), key)
    for k in reversed(range(len(model.blocks))):
        yield part, k, cotangent
        if k > 0:
            cotangent = pull_block(model, part, k, cotangent)


def first_rows(passes: Passes) -> list[int]:
    """The number of each microbatch's first sequence, counted through all of them."""
    sizes = [jax.tree.leaves(part.inputs[-1])[0].shape[0] for part in passes.parts]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def by_sequence(function: Callable, z: Any, batch: Any, first: Array, key: Key[Array, ""]) -> Any:
    """`function(z, batch, key)` of each sequence by itself, as a batch of one with a key of its own."""
    size = jax.tree.leaves(z)[0].shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(size))
    one, alone = partial(jax.tree.map, lambda a: a[0]), partial(jax.tree.map, lambda a: a[None])
    return jax.vmap(lambda z, batch, key: one(function(alone(z), alone(batch), key)))(z, batch, keys)


def push_block(model: LayeredModel, part: Pass, k: int, tangent: Any) -> Any:
    """A tangent of block k's input, pushed to its output."""
    return _push(_map(model, part, k), model.blocks[k], tangent)


def pull_block(model: LayeredModel, part: Pass, k: int, cotangent: Any) -> Any:
    """A cotangent of block k's output, pulled to its input."""
    return _pull(_map(model, part, k), model.blocks[k], cotangent)


def token_mean(passes: Passes, shares: Iterable[Any]) -> Any:
    """The sum of the microbatches' shares divided by N; the shares' memory is reused."""
    return _scale(1 / passes.count, reduce(_add, shares))


def host_loop(unfinished: Callable[[Any], Array], body: Callable[[Any], Any], state: Any) -> Any:
    """`jax.lax.while_loop` on the host, for products that dispatch one block at a time."""
    while unfinished(state):
        state = body(state)
    return state


def linear_taps(model: LayeredModel, part: Pass, k: int, cotangent: Any) -> dict[str, tuple[Array, Array]]:
    """What the gradient of each linear map of block k is made of: its inputs `[B, .., in]` and its outputs' cotangents.

    With `cotangent` the gradient with respect to the block's output, a kernel's gradient is `inputs' @ cotangents`
    summed over all leading axes; kept apart, they give it sequence by sequence [M8] and its Kronecker factors.
    """
    return _taps(model.loss, model.specs[k], model.blocks[k], part.inputs[k], part.batch, cotangent)


def _run_pass(model: LayeredModel, batch: Any, *, keep_maps: bool) -> Pass:
    inputs, maps = [embedded(model.loss, model.outer, batch)], []
    for spec, weights in zip(model.specs, model.blocks, strict=True):
        x, linear = _forward(model.loss, spec, weights, inputs[-1], batch)
        inputs.append(x)
        if keep_maps:
            maps.append(linear)
    value, cotangent, *ends = _head(model.loss, model.outer, inputs[-1], batch)
    part = Pass(batch, inputs, [], maps, tuple(ends) if keep_maps else (), value)
    cotangents = [cotangent]
    for k in reversed(range(1, len(model.blocks))):
        cotangents.append(pull_block(model, part, k, cotangents[-1]))
    return part._replace(cotangents=cotangents[::-1])


def _origin_of_loss(model: LayeredModel, parts: list[Pass]) -> str:
    if broken := not_finite(model.outer):
        return broken
    for k, weights in enumerate(model.blocks):
        if broken := not_finite(weights):
            return f"{layer_prefix(k)}.{broken}"
    for k in range(len(model.blocks) + 1):
        if not_finite([part.inputs[k] for part in parts]):
            where = f"the output of {layer_prefix(k - 1)}" if k else "the embedding"
            return f"all weights are finite, but {where} is not; use a wider precision"
    return "all weights and all layers' outputs are finite, but logits or loss are not; use a wider precision"


def _origin_of_gradient(passes: Passes, k: int) -> str:
    """Where going backward first meets what is not finite; `k`: a layer in which it is there."""
    last = len(passes.parts[0].cotangents) - 1
    first = max((j for j in range(k, last + 1) if not_finite([p.cotangents[j] for p in passes.parts])), default=None)
    if first is None:
        return f"It begins in {layer_prefix(k)}"
    return "It begins in the readout" if first == last else f"It begins in {layer_prefix(first + 1)}"


def _map(model: LayeredModel, part: Pass, k: int) -> Linearized:
    if part.maps:
        return part.maps[k]
    return _forward(model.loss, model.specs[k], model.blocks[k], part.inputs[k], part.batch)[1]


def head_ends(model: LayeredModel, part: Pass) -> tuple[Linearized, ...]:
    """The linearisations of the readout and of the loss with its gradient."""
    return part.ends or _head(model.loss, model.outer, part.inputs[-1], part.batch)[2:]


_push = jax.jit(push)
_pull = jax.jit(pull)
_add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
_scale = jax.jit(vectors.scale, donate_argnums=1)


def run_blocks(model: LayeredModel, blocks: Sequence[Weights], first: int, x: Any, batch: Any) -> Any:
    """The stream after the last block, from that before block `first`, with these weights in place of the model's."""
    for j in range(first, len(blocks)):
        x = run_block(model.loss, model.specs[j], blocks[j], x, batch)
    return x


@partial(jax.jit, static_argnums=(0, 1))
def run_block(loss: LayeredLoss, spec: Hashable, weights: Weights, x: Any, batch: Any) -> Any:
    """The stream after one block."""
    return loss.block(spec, weights, x, batch)


@partial(jax.jit, static_argnums=0)
def embedded(loss: LayeredLoss, outer: Any, batch: Any) -> Any:
    """The stream before the first block."""
    return loss.embed(outer, batch)


@partial(jax.jit, static_argnums=(0, 1))
def _forward(loss: LayeredLoss, spec: Hashable, weights: Weights, x: Any, batch: Any) -> tuple[Any, Linearized]:
    return linearize(lambda x: loss.block(spec, weights, x, batch), x, shared=weights)


@partial(jax.jit, static_argnums=0)
def _head(loss: LayeredLoss, outer: Any, x: Any, batch: Any) -> tuple[Array, Any, Linearized, Linearized]:
    z, head = linearize(lambda x: loss.readout(outer, x, batch), x, shared=outer)
    (value, z_bar), hessian = linearize(jax.value_and_grad(lambda z: loss.loss(z, batch)), z, shared=())
    return value, pull(head, outer, z_bar), head, hessian


@jax.jit
def _curve(head: Linearized, hessian: Linearized, outer: Any, tangent: Any) -> Any:
    _, z_bar = push(hessian, (), push(head, outer, tangent))
    return pull(head, outer, z_bar)


@partial(jax.jit, static_argnums=0)
def _sample(loss: LayeredLoss, outer: Any, x: Any, batch: Any, head: Linearized, first: Array, key: Array) -> Any:
    def root(z: Any, batch: Any, key: Array) -> Any:
        return loss.sample(key, z, batch)

    return pull(head, outer, by_sequence(root, loss.readout(outer, x, batch), batch, first, key))


@partial(jax.jit, static_argnums=(0, 1))
def _own_map(loss: LayeredLoss, spec: Hashable, varied: Weights, fixed: Weights, x: Any, batch: Any) -> Linearized:
    return linearize(
        lambda v: loss.block(spec, {**fixed, **cast_like(v, varied)}, x, batch), widened(varied), shared=(varied, fixed)
    )[1]


@partial(jax.jit, static_argnums=(0, 1))
def _gradient(
    loss: LayeredLoss, spec: Hashable, varied: Weights, fixed: Weights, x: Any, batch: Any, cotangent: Any
) -> dict[str, Array]:
    _, pull_back = jax.vjp(lambda v: loss.block(spec, {**fixed, **cast_like(v, varied)}, x, batch), widened(varied))
    return pull_back(cotangent)[0]


def widened(values: Tree) -> Tree:
    """All floats in at least float32: a vector of bfloat16 would certify nothing."""

    def wide(x: Array) -> Array:
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(wide, values)


def cast_like(values: Weights, like: Weights) -> dict[str, Array]:
    """In the network's own precision again."""
    return {path: value.astype(like[path].dtype) for path, value in values.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _squared_gradients(
    loss: LayeredLoss, spec: Hashable, weights: Weights, x: Any, batch: Any, cotangent: Any
) -> dict[str, Array]:
    gradient = jax.vjp(lambda w: loss.block(spec, w, x, batch), weights)[1](cotangent)[0]
    return {path: vectors.dot(array, array) for path, array in gradient.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _taps(
    loss: LayeredLoss, spec: Hashable, weights: Weights, x: Any, batch: Any, cotangent: Any
) -> dict[str, tuple[Array, Array]]:
    def tapped(offsets: Weights) -> tuple[Any, dict[str, Array]]:
        return loss.taps(spec, weights, x, batch, offsets)

    _, inputs = jax.eval_shape(tapped, {})
    offsets = {path: jnp.zeros((*a.shape[:-1], weights[path].shape[-1]), a.dtype) for path, a in inputs.items()}
    _, pull_back, inputs = jax.vjp(tapped, offsets, has_aux=True)
    (cotangents,) = pull_back(cotangent)
    return {path: (inputs[path], cotangents[path]) for path in inputs}
