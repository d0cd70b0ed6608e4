# %% [markdown]
# # Does one text's allocation serve another?
#
# Cells are in the `py:percent` format: open this file as a notebook with jupytext, or run it with
# `python notebooks/04_transfer.py`, which writes the figures to `runs/notebooks/04_transfer` (or to `$FIGURES`). The
# regret here is surrogate cost: the objective of the program, judged by the other text's scores. It is not an accuracy.
# Numbers like [M18] are those of METHOD.md.

# %%
import os
import sys
from pathlib import Path

import numpy as np

from curvjax.allocation import CapacityProgram, SparsityProgram, quality, transfer_regret
from curvjax.curvature import layer_gains, run_passes, trust_radius
from curvjax.data import pack, read_documents, take
from curvjax.layers import module_units
from curvjax.models import load_model, parameters
from curvjax.models.layered import layered_model
from curvjax.report import save_figure, transfer_figure

FOLDER = Path(os.environ.get("FIGURES", "runs/notebooks/04_transfer"))


def show(figure, name):
    """Write a figure to the folder, and draw it where this runs as a notebook."""
    _, png = save_figure(figure, FOLDER, name)
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(png, width=760))


# %% [markdown]
# ## Gains on two texts
#
# The same model, the same units, the same settings; encyclopedia paragraphs, and conversations about stories.

# %%
model, tokenizer, *_ = load_model("glassllm")
layered, units = layered_model(model), module_units(parameters(model))
qualities = {}
for text in ("squad", "coqa"):
    batch = take(pack(read_documents(f"demo:{text}")[:8], tokenizer, length=24), range(8))
    passes = run_passes(layered, [batch])
    gains = layer_gains(layered, passes, units, damping=trust_radius(0.02), rtol=0.05, probes=2)
    zeta2 = (gains.gain.lower[:, 0] + gains.gain.upper[:, 0]) / 2
    qualities[text] = np.asarray(quality(zeta2, floor=0.05))
source, target = qualities.values()
print(f"drift |q_S - q_T| = {np.linalg.norm(source - target):.3f}")

# %% [markdown]
# ## Ranks by the one, judged by the other
#
# Three bounds [M18]: the a-posteriori one uses the slopes at the source's optimum, `bound` the worst slope and the
# worst curvature anywhere, and the paper's form multiplies that by the condition number. They are ordered, they are
# never violated, and they are far apart: read the regret, and the bounds as insurance.

# %%
index = [unit.index for unit in units]
means = [2, 3, 4, 6, 8, 12]
regrets = [
    transfer_regret(CapacityProgram(cost=1.0, budget=(mean - 1) * len(units), maximum=63.0), source, target)
    for mean in means
]
for mean, found in zip(means, regrets, strict=True):
    print(f"mean rank {mean:2d}: regret {found.regret:.2e} <= {found.a_posteriori:.2e} <= {found.bound:.2e}")
show(transfer_figure(regrets, budgets=means, index=index, unit="extra rank"), "ranks")

# %% [markdown]
# ## Sparsities

# %%
size = np.asarray([np.prod(parameters(model)[unit.paths[0]].shape) for unit in units], float)
shares = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8]
regrets = [
    transfer_regret(SparsityProgram(size=size / size.sum(), sparsity=share, size_neutral=True), source, target)
    for share in shares
]
for share, found in zip(shares, regrets, strict=True):
    print(f"sparsity {share:.1f}: regret {found.regret:.2e} <= {found.a_posteriori:.2e} <= {found.bound:.2e}")
show(transfer_figure(regrets, budgets=shares, index=index, unit="share removed"), "sparsities")

# %% [markdown]
# ## Against controls
#
# What other scores would cost by the same judge: equal scores, and the source's dealt out at random.

# %%
judge = SparsityProgram(size=size / size.sum(), sparsity=0.5, size_neutral=True)
dealt = np.random.default_rng(1).permutation(source)
for name, scores in {"other text": source, "uniform": np.ones_like(source), "permuted": dealt}.items():
    print(f"{name:10s} regret {transfer_regret(judge, scores, target).regret:.2e}")
