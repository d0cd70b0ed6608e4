# %% [markdown]
# # The gains of a small language model, and how far to trust them
#
# Cells are in the `py:percent` format: open this file as a notebook with jupytext, or run it with
# `python notebooks/01_gains.py`, which writes the figures to `runs/notebooks/01_gains` (or to `$FIGURES`). The model,
# `glassllm`, has four layers and comes as a package, as the texts do: `make test` installs both; nothing is fetched.
# Numbers like [M4] are those of METHOD.md.

# %%
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.curvature import (
    Absolute,
    GainStatus,
    bootstrap_gains,
    each_gram,
    empirical_fisher,
    gain_of,
    ggn_product,
    host_loop,
    layer_gains,
    run_lanczos,
    run_passes,
    spectral_density,
    unit_gradient,
)
from curvjax.curvature.kinds import CURVATURES
from curvjax.data import pack, read_documents, take
from curvjax.layers import layer_units
from curvjax.models import load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.report import (
    bootstrap_figure,
    convergence_figure,
    damping_figure,
    density_figure,
    gains_figure,
    order_figure,
    save_figure,
    step_figure,
)
from curvjax.report.profile import gain_profile, proved_ranks, rank_correlation

FOLDER = Path(os.environ.get("FIGURES", "runs/notebooks/01_gains"))


def show(figure, name):
    """Write a figure to the folder, and draw it where this runs as a notebook."""
    _, png = save_figure(figure, FOLDER, name)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(png, width=760))


# %% [markdown]
# ## Model, text, one pass
#
# The risk is the mean next-token loss over the counted tokens [M1]. One forward and one backward pass keep what all
# curvature products of all layers need.

# %%
SEQUENCES, LENGTH, RADIUS, RTOL = 12, 24, 0.02, 0.01
GRID = tuple(float(tau) for tau in np.logspace(-3, 2, 11))  # dampings, units of the curvature

model, tokenizer, *_ = load_model("glassllm")
batch = take(pack(read_documents("demo:squad")[:SEQUENCES], tokenizer, length=LENGTH), range(SEQUENCES))
layered, units = layered_model(model), layer_units(parameters(model))
passes = run_passes(layered, [batch])
print(f"{len(units)} layers, {passes.count:.0f} counted tokens, mean loss {passes.value:.3f} nats")

# %% [markdown]
# ## Gains with brackets
#
# The gain of layer k is zeta_k^2 = g_k' (C_k + tau_k I)^-1 g_k [M4]; half of it is the largest decrease of the damped
# quadratic model when layer k moves alone. C_k is the generalised Gauss-Newton matrix, ggn [M2]. The damping tau_k is
# the one at which the step is 2% of the layer's norm, a trust radius [M3]. Gauss and Gauss-Radau quadrature bound the
# gain from both sides after every product [M5]. The run stops at a relative width of 1%.

# %%
gains = layer_gains(layered, passes, units, rtol=RTOL, grid=GRID)
for unit, low, high, products in zip(
    units, gains.gain.lower[:, 0], gains.gain.upper[:, 0], gains.gain.iterations, strict=True
):
    print(f"{unit.name}: {low:.4f} to {high:.4f} nats, {products} products")
show(gains_figure(gains, asked=RTOL), "gains")

# %% [markdown]
# ## How the bounds close in
#
# One run on the first layer, read after every product: the first j rows of its small matrix are the run of j products.
# All dampings share the run [M6]. Small dampings need more products, since more of the spectrum then matters.

# %%
first = units[0]
product, gradient = ggn_product(layered, passes, first), unit_gradient(layered, passes, first)
policy = Absolute(jnp.array([0.001, 0.1, 1.0]))
run = run_lanczos(product, gradient, policy=policy, rtol=1e-3, max_iterations=16, while_loop=host_loop)
prefixes = [
    gain_of(run._replace(matrix=run.matrix._replace(count=jnp.asarray(j, jnp.int32))), policy, rtol=1e-3)
    for j in range(1, int(run.matrix.count) + 1)
]
show(convergence_figure(prefixes), "convergence")

# %% [markdown]
# ## The damping decides
#
# The grid costs no further products [M6]; its brackets are as wide as the runs above left them, and widen where the
# damping is far below the chosen one. As tau grows, tau zeta^2 approaches |g|^2 [M4], so the order of the layers ends
# as that of the gradient norms. Ranks are those of the brackets' middles, hollow where a bracket meets another one:
# there the rank is not proved.

# %%
show(damping_figure(gains), "damping")
show(order_figure(gains), "order")

# %% [markdown]
# A fixed tau lets layers move by very different shares of their norm. The trust radius chooses tau_k so that all layers
# move equally far.

# %%
show(step_figure(gains, radius=RADIUS), "trust_radius")

# %% [markdown]
# ## The spectrum behind it
#
# Lanczos from random vectors estimates the density of the eigenvalues of the first layer's C. Eigenvalues far below
# tau do not affect the gain: there the damping acts alone.

# %%
spectrum = spectral_density(product, gradient, key=jax.random.key(0), probes=2, steps=16, while_loop=host_loop)
tau = float(gains.gain.damping[0, 0])
above = float(1 - spectrum.share_below(jnp.array([tau]))[0])
show(density_figure(spectrum, damping=tau), "density")

# %% [markdown]
# ## What a certificate does not cover
#
# The bracket is for *these* tokens. Drawing the sequences again with replacement shows what other sequences of the same
# kind would change. The empirical Fisher matrix needs only one gradient per sequence for that, so the bootstrap uses
# it, and is compared with the certificate of the same curvature. A replicate repeats sequences and so has a noisier
# gradient: the interval can lie above the gain.

# %%
fisher = list(CURVATURES["empirical-fisher"](layered, passes, units, rtol=RTOL))
bootstrap = bootstrap_gains(each_gram(layered, passes, units, kind=empirical_fisher()), top=1, replicates=100)
show(bootstrap_figure(bootstrap, fisher), "bootstrap")

# %% [markdown]
# ## Other curvatures
#
# The same gains, each at its own 2% trust radius, under the other curvatures. The Hessian may be indefinite; the
# result then says so and has no number, or only a lower bound [M7]. Brackets of the estimates (fisher-mc, kfac, ekfac,
# diagonal) are for the estimate; they say nothing of its distance from the ggn.

# %%
found = {"ggn": gains, "empirical-fisher": fisher}
for name in ("hessian", "fisher-mc", "kfac", "ekfac", "diagonal"):
    found[name] = list(CURVATURES[name](layered, passes, units, rtol=RTOL, max_iterations=6, probes=2))
profiles = {name: gain_profile(of_kind) for name, of_kind in found.items()}
order = {name: rank_correlation(row.chosen.middle, profiles["ggn"].chosen.middle) for name, row in profiles.items()}

print(f"{'zeta^2, nats':18}" + "".join(f"{unit.name:>10}" for unit in units) + "   Spearman to ggn")
for name, row in profiles.items():
    print(f"{name:18}" + "".join(f"{value:10.3f}" for value in row.chosen.middle) + f"{order[name]:18.2f}")

# %% [markdown]
# `nan` is a gain without a bracket. This is why:

# %%
for row in found["hessian"]:
    gain = row.gain
    print(
        f"{row.unit.name}: {GainStatus(int(gain.status[0])).name}, tau {gain.damping[0]:.2f}, "
        f"smallest Ritz value {gain.smallest_ritz:.2f}, lower bound {gain.lower[0]:.3f}"
    )

# %% [markdown]
# ## What to take from this
#
# Each sentence is computed from the numbers above. Four layers have few orders, so that a rank correlation among them
# is coarse: swapping two neighbours lowers it from 1 to 0.8. What holds for a model of this size need not hold for
# others.

# %%
chosen, grid = profiles["ggn"].chosen, profiles["ggn"].grid
certain = proved_ranks(chosen.lower[:, None], chosen.upper[:, None]).sum()
closed = np.all(proved_ranks(grid.lower, grid.upper), axis=0)
agreement = [rank_correlation(column, chosen.middle) for column in grid.middle.T[closed]]
certificate = chosen.gap.max()
sampling = np.max((bootstrap.upper - bootstrap.lower) / bootstrap.gain)
outside = int(np.sum((bootstrap.gain < bootstrap.lower) | (bootstrap.gain > bootstrap.upper)))
same_rank = int(np.sum(bootstrap.rank_lower == bootstrap.rank_upper))
unknown = int(np.isnan(profiles["hessian"].chosen.middle).sum())
share = {name: np.nanmax(np.abs(row.chosen.middle / chosen.middle - 1)) for name, row in profiles.items()}

print(
    f"- The widest bracket is {100 * certificate:.1f}% of its gain, after at most {gains.gain.iterations.max()}"
    f" products; the ranks of {certain} of {len(units)} layers are proved, for these tokens."
)
print(
    f"- The same runs prove the whole order at {closed.sum()} of {len(GRID)} dampings of the grid. There, its rank"
    f" correlation with the chosen order runs from {min(agreement):.2f} to {max(agreement):.2f}."
)
print(
    f"- An estimated {100 * above:.2g}% of the first layer's eigenvalues exceed its tau; in all other directions it is"
    " the damping that decides."
)
print(
    f"- The sampling interval (95%) is up to {100 * sampling:.0f}% of a gain wide, {sampling / certificate:.0f} times"
    f" the widest certificate. In it {same_rank} of {len(units)} layers keep their rank; {outside} gains lie outside"
    " their own interval, since a replicate's gradient is noisier."
)
print(f"- The Hessian gives no bracket for {unknown} of {len(units)} layers at this damping.")
for name in ("empirical-fisher", "fisher-mc", "kfac", "ekfac", "diagonal"):
    print(
        f"- {name}: gains within {100 * share[name]:.0f}% of the ggn's, rank correlation {order[name]:.2f}; each at its"
        " own damping, of one step length."
    )
