"""What adapters and mixtures cost, counted from their arrays."""

from typing import NamedTuple

from flax import nnx

from curvjax.models import submodules
from curvjax.surgery.growing.dora import DoRALinear
from curvjax.surgery.growing.experts import LoRAExperts
from curvjax.surgery.growing.lora import adapters
from curvjax.surgery.growing.router import Router
from curvjax.surgery.growing.upcycle import ExpertMLP


class ModuleCost(NamedTuple):
    """parameters: all. active: those that one token's output depends on, with its top k experts.

    flops: of the forward matrix products for one token, multiplications and additions; dense dispatch computes every
    expert, so they are twice the entries of all matrices, `active` or not.
    """

    parameters: int
    active: int
    flops: int


def adapter_size(shape: tuple[int, ...], *, rank: int, experts: int = 1, magnitudes: bool = False) -> int:
    """Parameters of an adapter of an `[in, out]` kernel: e r (in + out), + e in for a router, + out for magnitudes."""
    inputs, outputs = shape
    router = experts * inputs if experts > 1 else 0
    return experts * rank * (inputs + outputs) + router + (outputs if magnitudes else 0)


def adapter_costs(model: nnx.Module) -> dict[str, ModuleCost]:
    """Cost of each projection's adapter by module path, in layer order; the projection itself is not counted.

    Magnitudes scale what is there and add no product; the norms they divide by are not a token's cost either.
    """
    found = {}
    for path, adapter in adapters(model).items():
        low = adapter.lora_a.size + adapter.lora_b.size
        if isinstance(adapter, LoRAExperts):
            found[path] = _mixture_cost(low, adapter.router)
        else:
            magnitudes = adapter.magnitude.size if isinstance(adapter, DoRALinear) else 0
            found[path] = ModuleCost(low + magnitudes, low + magnitudes, 2 * low)
    return found


def upcycled_costs(model: nnx.Module) -> dict[str, ModuleCost]:
    """Cost of each upcycled MLP by module path, `layers.3.mlp`."""
    found = {}
    for path, mlp in submodules(model).items():
        if isinstance(mlp, ExpertMLP):
            maps = mlp.gate_proj, mlp.up_proj, mlp.down_proj
            products = mlp.router.weight.size + sum(one.kernel.size for one in maps)
            found[path] = ModuleCost(mlp.parameters, mlp.active, 2 * products)
    return found


def _mixture_cost(weights: int, router: Router) -> ModuleCost:
    inputs, experts = router.weight.shape
    total = weights + inputs * experts
    return ModuleCost(total, weights // experts * router.top_k + inputs * experts, 2 * total)
