# %% [markdown]
# # From gains to budgets: the program, its price, its proof, and its rivals
#
# Cells are in the `py:percent` format: open this file as a notebook with jupytext, or run it with
# `python notebooks/02_allocate.py`, which writes the figures to `runs/notebooks/02_allocate` (or to `$FIGURES`). The
# model, `glassllm`, has four layers; each of its 28 projections is a unit of its own here. Numbers like [M12] are those
# of METHOD.md.

# %%
import os
import sys
from pathlib import Path

import jax
import numpy as np

from curvjax.allocation import (
    CONTROLS,
    RULES,
    BudgetConstraint,
    allocate_bits,
    allocate_capacity,
    allocate_sparsity,
    budget_path,
    certify,
    quality,
    round_capacity,
    tighten_bounds,
)
from curvjax.curvature import layer_gains, run_passes, trust_radius
from curvjax.data import pack, read_documents, take
from curvjax.layers import module_units
from curvjax.models import load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.report import path_figure, ranges_figure, save_figure

FOLDER = Path(os.environ.get("FIGURES", "runs/notebooks/02_allocate"))


def show(figure, name):
    """Write a figure to the folder, and draw it where this runs as a notebook."""
    _, png = save_figure(figure, FOLDER, name)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(png, width=760))


# %% [markdown]
# ## Scores
#
# Certified gains of every projection, with brackets of 2%, and the quality scores that they make [M10].

# %%
model, tokenizer, *_ = load_model("glassllm")
batch = take(pack(read_documents("demo:squad")[:8], tokenizer, length=24), range(8))
layered, units = layered_model(model), module_units(parameters(model))
passes = run_passes(layered, [batch])
gains = layer_gains(layered, passes, units, damping=trust_radius(0.02), rtol=0.02, probes=2)
lower, upper = gains.gain.lower[:, 0], gains.gain.upper[:, 0]
zeta2 = (lower + upper) / 2
q = np.asarray(quality(zeta2))
index = [unit.index for unit in units]
print(f"{len(units)} projections, gains from {zeta2.min():.3g} to {zeta2.max():.3g} nats")

# %% [markdown]
# ## The capacity program
#
# Rank beyond the first for every projection, where a rank costs (in + out) parameters [M11]. The result carries its
# evidence: the budget spent, the dual price, the KKT residual, the duality gap and which bounds hold. Any concave
# utility and any real costs go through the same core; here it is the paper's log(1 + e).

# %%
shapes = [parameters(model)[unit.paths[0]].shape for unit in units]
cost = np.asarray([sum(shape) for shape in shapes], float)
maximum = np.asarray([min(shape) for shape in shapes], float) - 1
budget = 7 * cost.sum()  # a mean rank of 8
found = allocate_capacity(q, cost=cost, budget=budget, alpha=0.0, maximum=maximum)
print(f"spent {found.spent:,.0f} of {found.requested:,.0f} parameters")
print(f"KKT residual {found.residual:.1e}, duality gap {found.gap:.1e}")
print(f"one more million parameters buys {1e6 * found.dual:.3g} of the objective")
print(f"{int((found.held == -1).sum())} projections stay at rank 1, {int((found.held == 1).sum())} are at full rank")

# %% [markdown]
# ## The whole path in one call
#
# A sweep over budgets is one vmapped solve. The dual price is the slope of the Pareto curve: where it has fallen to a
# tenth, the next parameter buys a tenth.

# %%
budgets = np.geomspace(0.25, 24, 120) * cost.sum()
path = budget_path(lambda b: allocate_capacity(q, cost=cost, budget=b, alpha=0.0, maximum=maximum), budgets)
show(path_figure(path, unit="adapter parameters"), "path")

# %% [markdown]
# ## Whole ranks, exactly
#
# At unequal costs the best whole ranks are a knapsack; its answer is proven, and its distance to the continuous optimum
# is reported [M14]. From an allowed set of ranks one entry is chosen for each projection, exactly too.

# %%
whole = round_capacity(q, cost=cost, budget=budget, alpha=0.0, maximum=maximum)
print(f"exact: {whole.exact}, gap to the continuous optimum {whole.gap:.2e}, unspent {whole.unspent:.0f} parameters")
allowed = np.asarray([1, 2, 4, 8, 16, 32])
menu = allocate_bits(
    np.where(allowed - 1 <= maximum[:, None], -q[:, None] * np.log(allowed), np.inf),
    cost[:, None] * allowed,
    budget=8 * cost.sum(),
)
print(f"allowed ranks {sorted(set(allowed[menu.choice].tolist()))}, exact: {menu.exact}, gap {menu.gap:.2e}")

# %% [markdown]
# ## Proof, and what it costs
#
# Gains are known within brackets, so whole amounts are known within ranges [M19]. `tighten_bounds` tightens only those
# units whose amount is still open. A probe would run further curvature products; here it reads a second, tighter
# measurement, whose own brackets of 2% can leave an amount open.

# %%
count = len(units)


def experts(scores):
    """Extra experts, three for each projection in the mean, at equal costs."""
    return round_capacity(scores, cost=1.0, budget=3 * count, alpha=0.0).amount


wide = lower * 0.8, upper * 1.2  # as if after few products
factors = np.full(count, 0.2)


def probe(unit):
    """Halve the extra width of one unit's bracket."""
    if factors[unit] < 1e-3:
        return None
    factors[unit] /= 2
    return lower[unit] * (1 - factors[unit]), upper[unit] * (1 + factors[unit])


refined = tighten_bounds(experts, probe, *wide, effort=500)
before = certify(experts, *wide)
after = refined.certificate
print(f"{before.unique.sum()} of {count} proved before, {after.unique.sum()} after {refined.probes.sum()} probes")
print(f"{int((refined.probes == 0).sum())} units were left as they were; proved: {refined.proved}")
show(ranges_figure({"few products": before, "refined": after}, index=index, unit="extra experts"), "ranges")

# %% [markdown]
# ## Rivals side by side
#
# Published rules and controls take the same scores and the same budget. (Scores of other papers need other
# measurements: `curvjax compare` makes them.)

# %%
share = BudgetConstraint(weight=np.ones(count), total=4.0 * count, maximum=np.full(count, 64.0))


def program(scores):
    """Ours, four experts in the mean, at least one."""
    return 1 + experts(scores)


given = {f"program, scores {name}": program(control(q, jax.random.key(1))) for name, control in CONTROLS.items()}
given |= {name: np.asarray(rule.of(q, share)) for name, rule in RULES.items() if "experts" in rule.targets}
for name, amounts in given.items():
    print(f"{name:26s} from {amounts.min():5.2f} to {amounts.max():5.2f}, total {amounts.sum():6.1f}")

# %% [markdown]
# ## Sparsity
#
# The same core, with a penalty in place of a utility [M15]. `size_neutral` takes out the preference for large matrices.

# %%
size = np.asarray([np.prod(shape) for shape in shapes], float)
for neutral in (False, True):
    rho = allocate_sparsity(q, size=size, sparsity=0.5, kappa=0.5, size_neutral=neutral)
    print(
        f"size-neutral {neutral}: from {rho.amount.min():.2f} to {rho.amount.max():.2f}, price {rho.dual:.2e} a weight"
    )
