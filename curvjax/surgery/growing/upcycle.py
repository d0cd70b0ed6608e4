"""Gated MLPs grown into mixtures of copies of themselves.

Source: Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", 2023, section 3:
every expert a copy, the router normal with deviation 0.02, weights renormalised so that the function survives. Theirs
limits the tokens of an expert and drops the rest; ours computes every expert for every token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.data import Batch
from curvjax.layers import layer_index, layer_prefix
from curvjax.models import MLP, Decoder, Linear
from curvjax.models.decoder import ACTIVATIONS
from curvjax.models.rebuilt import TRAINED, Facts, rebuilt_module
from curvjax.records import Rebuilt
from curvjax.surgery.growing.router import Router
from curvjax.surgery.lesson import Lesson
from curvjax.surgery.method import Counts, account, require_batch, surgery
from curvjax.surgery.projections import projections
from curvjax.tick import Tick

ROUTER_DEVIATION = 0.02
_SLACK = 1e3  # units in the last place that logits may move: rounding, through all layers
_MOST_MOVED = 0.1  # of the largest logit, for types whose last place is large
_PROBE = 64  # tokens that logits are compared on


class LinearExperts(nnx.Module):
    """E affine maps. kernel: `[E, in, out]`. bias: `[E, out]` or None."""

    def __init__(self, linear: Linear, experts: int):
        def copies(array: jax.Array) -> nnx.Param:
            return nnx.Param(jnp.repeat(array[None], experts, axis=0))

        self.kernel = copies(linear.kernel[...])
        self.bias = None if linear.bias is None else copies(linear.bias[...])

    def __call__(self, x_eNI: jax.Array) -> jax.Array:
        """`[E, N, in]`, or `[1, N, in]` that all experts share, to `[E, N, out]`."""
        y_ENO = jnp.matmul(x_eNI, self.kernel[...])
        return y_ENO if self.bias is None else y_ENO + self.bias[...][:, None, :]

    def arrays(self) -> dict[str, nnx.Variable]:
        """Kernel and, where there is one, bias."""
        return {"kernel": self.kernel} | ({} if self.bias is None else {"bias": self.bias})


@rebuilt_module
class ExpertMLP(nnx.Module):
    """sum_e g_e(x) down_e(act(gate_e(x)) * up_e(x)), g: a `Router`. trained: whether experts and router learn."""

    def __init__(self, mlp: MLP, router: Router):
        assert mlp.gate_proj is not None
        experts = router.weight.shape[1]
        self.router = router
        self.gate_proj = LinearExperts(mlp.gate_proj, experts)
        self.up_proj = LinearExperts(mlp.up_proj, experts)
        self.down_proj = LinearExperts(mlp.down_proj, experts)
        self.activation, self.trained = mlp.activation, True

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """`[B, T, D]` to `[B, T, D]`."""
        x_1ND = x_BTD.reshape(1, -1, x_BTD.shape[-1])
        hidden_ENF = ACTIVATIONS[self.activation](self.gate_proj(x_1ND)) * self.up_proj(x_1ND)
        gates_NE, y_END = self.router(x_1ND[0]), self.down_proj(hidden_ENF)
        return jnp.einsum("ne,end->nd", gates_NE.astype(y_END.dtype), y_END).reshape(x_BTD.shape)

    def plain(self) -> MLP:
        """There is none.

        Raises:
          ValueError: always.
        """
        msg = f"a mixture of {self.router.weight.shape[1]} experts depends on its input; no single MLP equals it."
        raise ValueError(msg)

    def facts(self) -> dict[str, Any]:
        """The router's, and whether it learns."""
        return self.router.facts() | {TRAINED: self.trained}

    @classmethod
    def blank(cls, plain: MLP, facts: Facts) -> Self:
        """Copies of the MLP, and a router of zeros."""
        weight = nnx.Param(jnp.zeros((plain.up_proj.kernel.shape[0], facts["experts"])))
        mixture = cls(plain, Router(weight, top_k=facts["top_k"]))
        mixture.trained = facts[TRAINED]
        return mixture

    @property
    def parameters(self) -> int:
        """Numbers in all of its arrays."""
        return sum(array.size for array in self.matrices().values())

    @property
    def active(self) -> int:
        """Parameters that one token goes through, all of the router included."""
        router = self.router.weight
        return router.size + (self.parameters - router.size) // router.shape[1] * self.router.top_k

    def matrices(self) -> dict[str, nnx.Variable]:
        """All arrays of router and experts, by name."""
        maps = {"gate_proj": self.gate_proj, "up_proj": self.up_proj, "down_proj": self.down_proj}
        experts = {f"{name}.{part}": array for name, one in maps.items() for part, array in one.arrays().items()}
        return {"router.weight": self.router.weight} | experts


def upcycle(model: Decoder, experts: Mapping[str, int | np.integer], *, key: jax.Array, top_k: int = 2) -> Decoder:
    """A copy of `model` whose MLPs are mixtures of the given numbers of experts, and equal logits up to rounding.

    Experts and routers are parameters of the model like any other, in place of the MLP's; they are what
    `curvjax.training.fit` trains, with adapters where there are any.

    Args:
      model: a decoder with gated MLPs.
      experts: `layer -> number of experts`, such as `{"layers.3": 4}`; 1, or no name, leaves the MLP as it is.
      key: random key of the routers.
      top_k: experts a token goes to; all of them where there are fewer.

    Returns:
      A new model; `model` is not changed.

    Raises:
      KeyError: if a layer is not in the model.
      TypeError: if an MLP is a mixture already.
      ValueError: if a number is not a whole number from 1, `top_k` is below 1, or an MLP has no gate or has adapters.
    """
    names = [layer_prefix(index) for index in range(len(model.layers))]
    unknown = sorted(experts.keys() - set(names))
    if unknown:
        msg = f"{len(unknown)} layers are not in the model, e.g. {unknown[:3]}; it has {names[0]} to {names[-1]}."
        raise KeyError(msg)
    if top_k < 1:
        msg = f"top_k must be at least 1, a token goes to some expert; got {top_k}."
        raise ValueError(msg)
    copy = nnx.clone(model)
    for name, number in experts.items():
        block = copy.layers[layer_index(name)]
        _require_plain(name, block.mlp, number)
        if number > 1:
            up = block.mlp.up_proj.kernel[...]
            wide, shape = jnp.promote_types(up.dtype, jnp.float32), (up.shape[0], int(number))
            drawn = jax.random.normal(jax.random.fold_in(key, layer_index(name)), shape, wide)
            router = Router(nnx.Param(ROUTER_DEVIATION * drawn), top_k=top_k)
            block.mlp = ExpertMLP(block.mlp, router)  # ty: ignore[invalid-assignment] same call, other experts
    return copy


def _require_plain(name: str, mlp: nnx.Module, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        msg = f"the number of experts of {name} must be a whole number, at least 1; got {number!r}."
        raise ValueError(msg)
    if not isinstance(mlp, MLP):
        msg = f"{name}.mlp is a {type(mlp).__name__} already; upcycle a dense MLP."
        raise TypeError(msg)
    if mlp.gate_proj is None:
        msg = f"{name}.mlp has no gate; only gated MLPs are upcycled."
        raise ValueError(msg)
    adapted = [path for path, linear in projections(mlp).items() if type(linear) is not Linear]
    if adapted:
        msg = f"{name}.mlp has adapters on {adapted}; merge them before its experts are copied."
        raise ValueError(msg)


@surgery
@dataclass(frozen=True, kw_only=True)
class Upcycle:
    """MLPs grown into mixtures of their layer's number of copies, with equal logits; see `upcycle`.

    Example:
      >>> import curvjax as cj
      >>> cj.Upcycle(top_k=1).targets
      ('experts',)
    """

    name: ClassVar[str] = "upcycle"
    targets: ClassVar[tuple[str, ...]] = ("experts",)
    reads_text: ClassVar[bool] = True

    top_k: int = 2
    """Experts a token goes to; all of them where there are fewer."""
    seed: int = 1
    """Of the routers, which begin at random."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are experts of each layer; logits on the first of `batch` are compared."""
        del progress
        if max(amounts.values(), default=0) <= 1:
            msg = f"there is nothing to grow: none of the {len(amounts)} units has more than one expert."
            raise ValueError(msg)
        rows = require_batch(self, batch)
        grown = upcycle(model, amounts, key=jax.random.key(self.seed), top_k=self.top_k)
        mlps = {name: grown.layers[layer_index(name)].mlp for name in amounts}
        realised = {name: mlp.router.weight.shape[1] if isinstance(mlp, ExpertMLP) else 1 for name, mlp in mlps.items()}
        moved, counts = _moved(model, grown, rows), Counts(amounts, realised, sum(realised.values()))
        mixtures = [mlp for mlp in mlps.values() if isinstance(mlp, ExpertMLP)]
        active, held = (sum(getattr(mlp, what) for mlp in mixtures) for what in ("active", "parameters"))
        remarks = [
            f"a token goes through {active:,} of the {held:,} parameters of mixtures",
            f"logits are equal: the largest change is {moved:.1e} of the largest",
        ]
        return account(self, "experts", (model, grown), counts, remarks=remarks, evidence={"moved": moved})

    def lesson(self, born: Rebuilt) -> Lesson:
        """Experts and routers learn."""
        return Lesson(born.model)


def _moved(model: Decoder, grown: Decoder, batch: Batch) -> float:
    """The largest change of a logit, relative to the largest logit; refused where it is more than rounding."""
    seen = slice(0, 1), slice(0, _PROBE)
    tokens, positions, segments = (array[seen] for array in (batch.tokens, batch.positions, batch.segments))
    before, after = (each(tokens, positions_BT=positions, segments_BT=segments) for each in (model, grown))
    moved = float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))
    if not moved <= min(_SLACK * float(jnp.finfo(model.embed_tokens.embedding.dtype).eps), _MOST_MOVED):
        msg = f"logits of the mixtures differ from the model's by {moved:.1e} of the largest, more than rounding may."
        raise ValueError(msg)
    return moved
