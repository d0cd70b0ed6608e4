# %% [markdown]
# # One set of gains, four rebuilt models
#
# Cells are in the `py:percent` format: open this file as a notebook with jupytext, or run it with
# `python notebooks/03_surgery.py`, which writes the figures to `runs/notebooks/03_surgery` (or to `$FIGURES`). The same
# gains of `glassllm`, four layers, become LoRA ranks, LoRA experts, sparsities and bit widths; each model is rebuilt,
# its budget counted from the arrays, and measured. Four layers and some hundred tokens: how to do it, not which is
# better.

# %%
import os
import sys
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from curvjax.allocation import allocate_bits, allocate_sparsity, quality, round_capacity
from curvjax.curvature import layer_gains, run_passes, trust_radius
from curvjax.data import pack, read_documents, take
from curvjax.evaluation import perplexity
from curvjax.layers import layer_units
from curvjax.models import load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.report import save_figure
from curvjax.storage import Format
from curvjax.surgery import (
    adapter_costs,
    add_experts,
    add_lora,
    by_projection,
    prune_magnitude,
    prune_sparsegpt,
    prune_wanda,
    quantization_plan,
    quantize_nearest,
)

FOLDER = Path(os.environ.get("FIGURES", "runs/notebooks/03_surgery"))


def show(figure, name):
    """Write a figure to the folder, and draw it where this runs as a notebook."""
    _, png = save_figure(figure, FOLDER, name)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(png, width=760))


# %% [markdown]
# ## Gains, and texts to be judged by
#
# Calibration and test rows come from different documents.

# %%
model, tokenizer, *_ = load_model("glassllm")
documents = read_documents("demo:squad")
batch = take(pack(documents[:12], tokenizer, length=32), range(12))
test = take(pack(documents[100:130], tokenizer, length=32), range(24))
layered, units = layered_model(model), layer_units(parameters(model))
gains = layer_gains(layered, run_passes(layered, [batch]), units, damping=trust_radius(0.02), rtol=0.05, probes=2)
q = np.asarray(quality((gains.gain.lower[:, 0] + gains.gain.upper[:, 0]) / 2))
names = [unit.name for unit in units]
size = np.asarray(
    [sum(parameters(model)[p].size for p in unit.paths if p.endswith(".kernel")) for unit in units], float
)
measured = {"dense": perplexity(model, test).perplexity}
print(dict(zip(names, q.round(3).tolist(), strict=True)))


# %% [markdown]
# ## LoRA ranks
#
# Every projection of a layer gets the layer's rank. At birth an adapter changes nothing; its parameters are counted
# from the arrays.

# %%
ranks = 1 + round_capacity(q, cost=1.0, budget=7 * len(units), alpha=0.0).amount  # a mean rank of 8
per_projection = by_projection(model, dict(zip(names, ranks.tolist(), strict=True)))
adapted = add_lora(model, per_projection, key=jax.random.key(1))
print(f"ranks {ranks.tolist()}: {sum(cost.parameters for cost in adapter_costs(adapted).values()):,} parameters")
print(f"perplexity at birth {perplexity(adapted, test).perplexity:.3f}, dense {measured['dense']:.3f}")

# %% [markdown]
# ## LoRA experts
#
# A number of experts for every layer, each of rank 4, and a router that sends a token to two of them; a layer with one
# expert is plain LoRA.

# %%
experts = 1 + round_capacity(q, cost=1.0, budget=2 * len(units), alpha=0.0).amount  # three experts in the mean
mixed = add_experts(model, dict(zip(names, experts.tolist(), strict=True)), rank=4, key=jax.random.key(1))
costs = adapter_costs(mixed).values()
print(f"experts {experts.tolist()}: {sum(cost.parameters for cost in costs):,} parameters")
print(f"perplexity at birth {perplexity(mixed, test).perplexity:.3f}")

# %% [markdown]
# ## Sparsity
#
# Half of all weights go; which layers lose more is up to the gains. The same sparsities through three methods, and
# uniform ones beside them. The total is exact.

# %%
rho = np.asarray(allocate_sparsity(q, size=size, sparsity=0.5, kappa=0.5, size_neutral=True).amount)
for name, shares in {"by gain": rho, "uniform": np.full_like(rho, 0.5)}.items():
    wanted = dict(zip(names, shares.tolist(), strict=True))
    for method, pruned in {
        "magnitude": prune_magnitude(model, wanted),
        "wanda": prune_wanda(model, batch, wanted, rows_at_once=12),
        "sparsegpt": prune_sparsegpt(model, batch, wanted, rows_at_once=12),
    }.items():
        measured[f"{method}, {name}"] = perplexity(pruned.model, test).perplexity
        print(f"{method:9s} {name}: {pruned.achieved.total:.4%} removed, {measured[f'{method}, {name}']:.2f}")

# %% [markdown]
# ## Bits
#
# Widths of 2, 3, 4 or 8 bits, 3.5 in the mean. Rounding to b bits moves the weights by noise of energy 4^-b: one bit
# less harms four times as much, and the least harmful widths are found exactly [M14]. Bytes count scales too.

# %%
widths = np.asarray([2, 3, 4, 8])
choice = allocate_bits(q[:, None] * 4.0**-widths, size[:, None] * widths, budget=3.5 * size.sum())
for name, bits in {"by gain": widths[choice.choice], "reversed": widths[choice.choice][::-1]}.items():
    plan = quantization_plan(model, dict(zip(names, bits.tolist(), strict=True)), Format())
    rounded = quantize_nearest(model, plan)
    measured[f"bits, {name}"] = perplexity(rounded.model, test).perplexity
    print(f"{bits.tolist()} bits: {rounded.storage.bits_per_weight:.2f} a weight, {measured[f'bits, {name}']:.2f}")

# %% [markdown]
# ## Side by side

# %%
figure = Figure(figsize=(7.6, 3.2), layout="constrained")
axes = figure.subplots()
axes.barh(list(measured), list(measured.values()), color="#0072B2")
axes.axvline(measured["dense"], color="#222222", linewidth=1)
axes.set_xlabel("test perplexity")
axes.set_xscale("log")
axes.invert_yaxis()
show(figure, "side_by_side")
