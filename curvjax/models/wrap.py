"""Anyone's model as a layered loss: functions of modules or of pytrees, checked before anything is measured."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array

from curvjax.curvature.layered import LayeredLoss, LayeredModel, run_passes, unit_gradient
from curvjax.layers import layer_prefix, layer_units, within_layer
from curvjax.models.cross_entropy import CrossEntropyRoot
from curvjax.models.parameters import arrays_hash, parameters
from curvjax.models.parts import Spec, merged_part, split_part, stacked_parts
from curvjax.records import ModelOrigin


class _Wrapped(NamedTuple):
    model: LayeredModel
    name: str


class Wrapped(_Wrapped):
    """A model of someone else's, ready for what needs losses, gradients and curvature products only.

    Parameters are named by path: `layers.3.` and the path within block 3, `outer/` and the path within `outer`.

    Example:
      >>> import jax.numpy as jnp, curvjax as cj
      >>> wrapped = cj.wrap(
      ...     outer={"bias": jnp.zeros(2)},
      ...     embed=lambda outer, batch: batch["x"] + outer["bias"],
      ...     blocks=[{"mlp": {"w": jnp.eye(2)}}],
      ...     block=lambda block, x, batch: x @ block["mlp"]["w"],
      ...     readout=lambda outer, x, batch: x,
      ...     loss=lambda z, batch: -(batch["y"] * jnp.log(jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True))).sum(),
      ...     count=lambda batch: batch["y"].sum(),
      ... )
      >>> isinstance(wrapped, cj.Wrapped), list(wrapped.parameters)
      (True, ['layers.0.mlp.w', 'outer/bias'])
    """

    @property
    def parameters(self) -> dict[str, Array]:
        """Every parameter by path: those of the blocks in order, then those outside."""
        return parameters(self.model)

    @cached_property
    def origin(self) -> ModelOrigin:
        """By which records name the model; hashed once. The hash is of the weights: functions have none."""
        values = self.parameters
        total = sum(value.size for value in values.values())
        sha256, layers = arrays_hash(values), len(self.model.blocks)
        return ModelOrigin(name=self.name, sha256=sha256, parameters=total, layers=layers, family="wrapped")

    @property
    def sha256(self) -> str:
        """Of all parameters."""
        return self.origin.sha256

    def gradients(self, *batches: Any) -> dict[str, Array]:
        """Of the mean loss over the counted tokens of all batches, in every parameter of the blocks, by path; nats.

        Raises:
          ValueError: if no token counts, or something is not finite.
        """
        passes = run_passes(self.model, batches, keep_maps=False)
        found = {}
        for unit in layer_units(self.parameters):
            inside = unit_gradient(self.model, passes, unit)
            found |= {path: inside[within_layer(path)] for path in unit.paths}
        return found

    def with_parameters(self, values: Mapping[str, Array]) -> "Wrapped":
        """The same with other arrays at the paths given: pruned or rounded ones, say.

        Raises:
          KeyError: if there is no such parameter.
          ValueError: if a shape differs.
        """
        known = self.parameters
        unknown = sorted(values.keys() - known.keys())
        if unknown:
            msg = f"{self.name!r} has no {unknown[:3]}; its parameters are {list(known)[:3]}, ..."
            raise KeyError(msg)
        for path, value in values.items():
            if value.shape != known[path].shape:
                msg = f"{path} has shape {known[path].shape}, what is to replace it {value.shape}; keep the shape."
                raise ValueError(msg)
        blocks = [
            {name: values.get(f"{layer_prefix(k)}.{name}", array) for name, array in block.items()}
            for k, block in enumerate(self.model.blocks)
        ]
        outer = {path: values.get(path, array) for path, array in self.model.outer.items()}
        return Wrapped(self.model._replace(blocks=blocks, outer=outer), self.name)


def _call(block: Any, x: Any, batch: Any) -> Any:
    del batch
    return block(x)


def wrap(
    *,
    embed: Callable[[Any, Any], Any],
    blocks: Any,
    readout: Callable[[Any, Any, Any], Any],
    loss: Callable[[Any, Any], Array],
    count: Callable[[Any], Array],
    outer: Any,
    block: Callable[[Any, Any, Any], Any] = _call,
    stacked: int | None = None,
    sample: Callable[[Array, Any, Any], Any] | None = None,
    draw: Callable[[Array, Any, Any], Any] | None = None,
    name: str = "wrapped",
) -> Wrapped:
    """Any model that runs through blocks in order, as what `score`, `refine` and `promise` take.

        x_0 = embed(outer, batch),  x_k+1 = block(blocks[k], x_k, batch),  z = readout(outer, x_K, batch),
        R = sum over batches of loss(z, batch) / sum of count(batch)                                          [M1]

    Modules may be of Flax nnx, where parameters are its `nnx.Param`s of floating point and random state is never read;
    or any pytree, such as an Equinox module or the `params` of Linen, where they are its arrays of floating point. All
    else is constant. For budgets, an array of more than two axes is a stack of matrices, its last two axes. A batch is
    whatever pytree of arrays the functions read; the leading axis of each, as of x and z, counts sequences, which do
    not see each other.

    Args:
      embed: `(outer, batch) -> x`.
      blocks: a sequence of K modules or pytrees, or, with `stacked`, one whose arrays hold all K.
      readout: `(outer, x, batch) -> z`, logits; soft capping belongs here.
      loss: `(z, batch) -> []`, the *sum* over counted tokens, nats, convex in z.
      count: `batch -> []` how many these are; with weights of tokens, their sum.
      outer: module or pytree that embed and readout read, without the blocks.
      block: `(blocks[k], x, batch) -> x`; by default `blocks[k](x)`.
      stacked: axis of every array of `blocks` that counts the blocks, as scans have it; the slices are copies.
      sample: `(key, z, batch) -> u` like z, with E[u u'] the Hessian of `loss` in z. None: the loss is cross-entropy,
        weights and smoothing of labels included, which is checked when there is a batch.
      draw: `(key, z, batch) -> batch` with labels drawn from the model, for the curvature fisher-mc.
      name: for records.

    Returns:
      The `Wrapped` model.

    Raises:
      TypeError: if something is not a function, or a constant inside a block has no hash.
      ValueError: if there is no block, one has no parameters, stacked arrays disagree about K, or two places hold the
        same array.

    Example:
      >>> import jax, jax.numpy as jnp, optax, curvjax as cj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(1)
      >>> table, head = nnx.Embed(11, 8, rngs=rngs), nnx.Linear(8, 11, rngs=rngs)
      >>> wrapped = cj.wrap(
      ...     outer={"table": table, "head": head},
      ...     embed=lambda outer, batch: outer["table"](batch["ids"]),
      ...     blocks=[nnx.Linear(8, 8, rngs=rngs) for _ in range(3)],
      ...     block=lambda linear, x, batch: x + jax.nn.gelu(linear(x)),
      ...     readout=lambda outer, x, batch: outer["head"](x),
      ...     loss=lambda z, batch: optax.softmax_cross_entropy_with_integer_labels(z, batch["labels"]).sum(),
      ...     count=lambda batch: batch["labels"].size,
      ... )
      >>> ids = jax.random.randint(jax.random.key(1), (4, 6), 0, 11)
      >>> gains = cj.score(wrapped, {"ids": ids[:, :-1], "labels": ids[:, 1:]}, "gain", rtol=0.1)
      >>> [unit.name for unit in gains.units], bool((gains.lower <= gains.upper).all())
      (['layers.0', 'layers.1', 'layers.2'], True)
    """
    functions = {"embed": embed, "readout": readout, "loss": loss, "count": count, "block": block}
    functions |= {key: given for key, given in (("sample", sample), ("draw", draw)) if given is not None}
    for key, function in functions.items():
        if not callable(function):
            msg = f"{key} must be a function, got {type(function).__name__}; see curvjax.wrap for its arguments."
            raise TypeError(msg)
    modules = _listed(blocks) if stacked is None else stacked_parts(blocks, stacked)
    parts = [split_part(module, f"block {k}", ".") for k, module in enumerate(modules)]
    for k, (_, weights) in enumerate(parts):
        if not weights:
            msg = f"block {k} has no array of floating point: blocks hold the parameters that are scored."
            raise ValueError(msg)
    outer_spec, outer_weights = split_part(outer, "outer", "/")
    _require_apart({f"block {k}": weights for k, (_, weights) in enumerate(parts)} | {"outer": outer_weights})
    layered = LayeredLoss(
        embed=_Outer(embed, outer_spec),
        block=_Block(block),
        readout=_Outer(readout, outer_spec),
        loss=loss,
        sample=sample or CrossEntropyRoot(loss),
        count=count,
        draw=draw or _no_draw,
        taps=_Untapped(block),
    )
    kinds: dict[Spec, Spec] = {}  # alike blocks share one object, so that comparing two is comparing places
    specs = tuple(kinds.setdefault(spec, spec) for spec, _ in parts)
    named = {f"outer/{path}": array for path, array in outer_weights.items()}
    return Wrapped(LayeredModel(layered, specs, [weights for _, weights in parts], named), name)


def require_decoder(model: object, command: str) -> None:
    """Refuse a wrapped model where the layers' own modules are needed.

    Raises:
      ValueError: naming the command, and those that take it.
    """
    if isinstance(model, Wrapped):
        msg = (
            f"{command} needs a decoder of curvjax.load; {model.name!r} is a model of wrap, which score, refine and "
            "promise take, and whose gradients and with_parameters any edit of your own can use."
        )
        raise ValueError(msg)


class _Outer(NamedTuple):
    function: Callable
    spec: Spec

    def __call__(self, outer: Mapping[str, Array], *rest: Any) -> Any:
        weights = {path.removeprefix("outer/"): array for path, array in outer.items()}
        return self.function(merged_part(self.spec, weights), *rest)


class _Block(NamedTuple):
    function: Callable

    def __call__(self, spec: Spec, weights: Mapping[str, Array], x: Any, batch: Any) -> Any:
        return self.function(merged_part(spec, weights), x, batch)


class _Untapped(NamedTuple):
    function: Callable

    def __call__(
        self, spec: Spec, weights: Mapping[str, Array], x: Any, batch: Any, offsets: Mapping[str, Array]
    ) -> tuple[Any, dict[str, Array]]:
        del offsets  # which of its products are linear maps, only the model knows
        return self.function(merged_part(spec, weights), x, batch), {}


def _no_draw(key: Array, z: Any, batch: Any) -> Any:
    del key, z, batch
    msg = "labels are drawn from a wrapped model only by a function of its own: give cj.wrap draw=."
    raise ValueError(msg)


def draws_labels(model: LayeredModel) -> bool:
    """Whether labels can be drawn from the model."""
    return model.loss.draw is not _no_draw


def _listed(blocks: Any) -> list[Any]:
    if not isinstance(blocks, Sequence | nnx.List) or isinstance(blocks, str):
        msg = (
            f"blocks must be a sequence of modules or pytrees, got {type(blocks).__name__}; of one whose arrays hold "
            "all blocks say the axis, stacked=0."
        )
        raise ValueError(msg)
    if not len(blocks):
        msg = "blocks is empty: a layered loss has at least one block."
        raise ValueError(msg)
    return list(blocks)


def _require_apart(parts: Mapping[str, Mapping[str, Array]]) -> None:
    """No array is in two places: moving it in one of them alone would be no move of the model."""
    owner: dict[int, str] = {}
    for place, weights in parts.items():
        for path, array in weights.items():
            here = f"{path} of {place}"
            if id(array) in owner:
                msg = (
                    f"{here} and {owner[id(array)]} are one array; give each to one place: outer={{...}} with what "
                    "embed and readout read, and no block twice."
                )
                raise ValueError(msg)
            owner[id(array)] = here
