"""Low-rank adapters with a rank of their own for every projection.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, eq. 3; the rank-stabilised scale is
from Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.models import Linear
from curvjax.models.rebuilt import TRAINED, Facts, rebuilt_module
from curvjax.surgery.projections import linear_with, projections, rebuilt, select
from curvjax.surgery.trained import require_shapes

Module = TypeVar("Module", bound=nnx.Module)
Scaling = Callable[[float, int], float]
"""`(alpha, rank) -> factor on (x A) B`."""


class Birth(NamedTuple):
    """What a new adapter begins with. kernel: `[in, out]` of the base. lora_a: `[in, r]`. lora_b: `[r, out]`."""

    kernel: jax.Array
    lora_a: jax.Array
    lora_b: jax.Array


Start = Callable[[jax.Array, int, float, jax.Array], Birth]
"""`(kernel, rank, scale, key) -> Birth`; kernel + scale A B is the kernel given, or another point to train from."""


class LoRAParam(nnx.Variable):
    """An adapter's matrix. Not an `nnx.Param`: `parameters`, hashes and curvature see the base model only."""


@rebuilt_module
class LoRALinear(Linear):
    """y = x W + bias + scale (x A) B. lora_a: `[in, r]`, lora_b: `[r, out]`, at least float32.

    It keeps `kernel` and `bias` under the names they had, so that paths, masks and exports need no second spelling.
    """

    def __init__(self, base: Linear, lora_a: jax.Array, lora_b: jax.Array, *, scale: float):
        self.kernel, self.bias = base.kernel, base.bias
        self.lora_a, self.lora_b = LoRAParam(lora_a), LoRAParam(lora_b)
        self.scale, self.trained = scale, True
        self.dropout: nnx.Module | None = nnx.data(None)  # `drop_inputs` puts one here, for one step of training

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])  # XLA on CPU takes gradients of 2-d products at two thirds of the time
        y = super().__call__(rows) + self.change(rows).astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)

    def change(self, rows: jax.Array) -> jax.Array:
        """What the adapter adds to x W: `[N, in]` to `[N, out]`, in the adapter's dtype."""
        return (self.scale * (self.adapter_input(rows) @ self.lora_a[...])) @ self.lora_b[...]

    def adapter_input(self, rows: jax.Array) -> jax.Array:
        """`[N, in]` in the adapter's dtype, after dropout where there is one."""
        wide = rows.astype(self.lora_a.dtype)
        return wide if self.dropout is None else self.dropout(wide)

    def folded(self) -> jax.Array:
        """The kernel `[in, out]` of the plain projection that computes the same, in the adapter's dtype."""
        return self.kernel[...] + self.scale * (self.lora_a[...] @ self.lora_b[...])

    def plain(self) -> Linear:
        """The projection that computes the same, in the kernel's dtype."""
        return linear_with(self.folded().astype(self.kernel.dtype), self.bias)

    def facts(self) -> dict[str, Any]:
        """Rank, scale and whether it learns."""
        return {"rank": self.lora_a.shape[-1], "scale": self.scale, TRAINED: self.trained}

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """An adapter of zeros."""
        (inputs, outputs), rank = plain.kernel.shape, facts["rank"]
        adapter = cls(plain, jnp.zeros((inputs, rank)), jnp.zeros((rank, outputs)), scale=facts["scale"])
        adapter.trained = facts[TRAINED]
        return adapter

    def matrices(self) -> dict[str, nnx.Variable]:
        """All that belongs to the adapter and not to the base, by name."""
        return {"lora_a": self.lora_a, "lora_b": self.lora_b}


def constant_scale(alpha: float, rank: int) -> float:
    """`alpha` at every rank: a layer that was given a low rank is not scaled up to make up for it."""
    del rank
    return alpha


def classic_scale(alpha: float, rank: int) -> float:
    """alpha / r, as in the original: the lower the rank, the larger the factor."""
    return alpha / rank


def rank_stabilised_scale(alpha: float, rank: int) -> float:
    """alpha / sqrt(r): activations and gradients keep their size as the rank grows."""
    return alpha / rank**0.5


def uniform_start(kernel: jax.Array, rank: int, scale: float, key: jax.Array) -> Birth:
    """A uniform in +-1/sqrt(in), B zero: the kernel stays as it is."""
    del scale
    inputs, outputs = kernel.shape
    dtype, bound = jnp.promote_types(kernel.dtype, jnp.float32), inputs**-0.5
    lora_a = jax.random.uniform(key, (inputs, rank), dtype, -bound, bound)
    return Birth(kernel, lora_a, jnp.zeros((rank, outputs), dtype))


def add_lora(
    model: Module,
    ranks: Mapping[str, int | np.integer],
    *,
    key: jax.Array,
    alpha: float = 2.0,
    scaling: Scaling = constant_scale,
    start: Start | Mapping[str, Start] = uniform_start,
) -> Module:
    """A copy of `model` with an adapter of the given rank on each named projection, and equal logits but for GoRA's.

    Each adapter's key is folded from the projection's path, so that it depends neither on the order of `ranks` nor on
    which other projections are adapted.

    Args:
      model: a decoder without adapters on the named projections.
      ranks: `module path -> rank`, 0 to min(in, out); rank 0 leaves the projection as it is, as does not naming it.
      key: random key.
      alpha: handed to `scaling`.
      scaling: `(alpha, rank) -> scale`: `constant_scale`, `classic_scale` or `rank_stabilised_scale`.
      start: what adapters begin with: `uniform_start`, or `principal_start` of the weights themselves; or by path, as
        `births` of a text.

    Returns:
      A new model; `model` is not changed.

    Raises:
      KeyError: if a path is not in the model.
      TypeError: if a path is not a `Linear`.
      ValueError: if a rank is not a whole number in its range, or the projection has an adapter already.
    """
    chosen = select(model, ranks)
    for path, linear in chosen.items():
        check_rank(path, linear, ranks[path])
    edits = {
        path: functools.partial(
            new_adapter,
            rank=int(rank),
            scale=float(scaling(alpha, int(rank))),
            key=path_key(key, path),
            start=start[path] if isinstance(start, Mapping) else start,
        )
        for path in chosen
        if (rank := ranks[path])
    }
    return rebuilt(model, edits)


def merge_lora(model: Module) -> Module:
    """A copy of `model` with every adapter folded into its kernel, such as W + scale A B, in the kernel's dtype.

    Logits are equal up to rounding. A pruned kernel becomes dense: merge, then prune, or keep the adapter apart.

    Raises:
      ValueError: if there is a mixture of experts, which no kernel equals.
    """
    return rebuilt(model, dict.fromkeys(adapters(model), _merged))


def lora_parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """Adapter matrices by path, `layers.3.self_attn.q_proj.lora_a`, in layer order."""
    return {
        f"{path}.{name}": matrix[...]
        for path, adapter in adapters(model).items()
        for name, matrix in adapter.matrices().items()
    }


def with_lora_parameters(model: Module, values: Mapping[str, jax.Array]) -> Module:
    """A copy of `model` whose adapters hold `values`.

    Args:
      model: a model with adapters.
      values: one array for each path of `lora_parameters(model)`.

    Returns:
      A new model; arrays other than the adapters' are shared.

    Raises:
      KeyError: if `values` does not name exactly the model's adapter matrices.
      ValueError: if a shape differs.
    """
    current = lora_parameters(model)
    if current.keys() != values.keys():
        missing, unknown = sorted(current.keys() - values.keys()), sorted(values.keys() - current.keys())
        msg = f"adapters do not match: {len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}."
        raise KeyError(msg)
    require_shapes(values, current, what="adapter matrices")
    copy = nnx.clone(model)
    for path, adapter in adapters(copy).items():
        for name, matrix in adapter.matrices().items():
            matrix.set_value(values[f"{path}.{name}"])
    return copy


def lora_ranks(model: nnx.Module) -> dict[str, int]:
    """Rank of each adapted projection, of each expert in a mixture, by module path, in layer order."""
    return {path: adapter.lora_a.shape[-1] for path, adapter in adapters(model).items()}


def count_lora(model: nnx.Module) -> int:
    """Number of adapter parameters; r (in + out) for each plain adapter."""
    return sum(array.size for array in lora_parameters(model).values())


def adapters(model: nnx.Module) -> dict[str, LoRALinear]:
    """Every adapted projection by module path, in layer order."""
    return {path: linear for path, linear in projections(model).items() if isinstance(linear, LoRALinear)}


def check_rank(path: str, linear: Linear, rank: object) -> None:
    """Refuse a second adapter, and a rank that the projection cannot have.

    Raises:
      ValueError: naming the projection, the rank and what is allowed.
    """
    if isinstance(linear, LoRALinear):
        msg = f"{path} has an adapter of rank {linear.lora_a.shape[-1]} already; merge it before adding another."
        raise ValueError(msg)
    full = min(linear.kernel.shape)
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 0 <= rank <= full:
        msg = f"rank of {path} must be a whole number from 0 to {full}, its smaller side; got {rank!r}."
        raise ValueError(msg)


def new_adapter(base: Linear, *, rank: int, scale: float, key: jax.Array, start: Start = uniform_start) -> LoRALinear:
    """`base` with an adapter that changes nothing yet."""
    kernel, lora_a, lora_b = start(base.kernel[...], rank, scale, key)
    adapter = LoRALinear(base, lora_a, lora_b, scale=scale)
    adapter.kernel = nnx.Param(kernel)
    return adapter


def moved_base(kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, scale: float) -> jax.Array:
    """W - scale A B in the kernel's dtype: with such an adapter the function is unchanged up to rounding."""
    return (kernel.astype(lora_a.dtype) - scale * (lora_a @ lora_b)).astype(kernel.dtype)


def with_moved_bases(model: Module) -> Module:
    """A copy of `model` in which each adapted kernel W is W - scale A B, by the adapter that it has."""
    copy = nnx.clone(model)
    for adapter in adapters(copy).values():
        matrices = adapter.lora_a[...], adapter.lora_b[...]
        adapter.kernel = nnx.Param(moved_base(adapter.kernel[...], *matrices, adapter.scale))
    return copy


def path_key(key: jax.Array, path: str) -> jax.Array:
    """A key for each path. Not by `hash(path)`: Python salts it anew in every process."""
    return jax.random.fold_in(key, int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big"))


def _merged(adapter: Linear) -> Linear:
    assert isinstance(adapter, LoRALinear)
    return adapter.plain()
