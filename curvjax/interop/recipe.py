"""Pruning recipes of llm-compressor: a list of targets and a list of their sparsities.

Source: llm-compressor 0.14, `SparsityModifierBase`. It pairs the list of sparsities with the matched modules in the
order of the *model*, whatever the order of `targets`; both lists are therefore in that order here. Its Wanda removes
floor(sparsity * in) weights of each output, less than asked; its SparseGPT floor(sparsity * n) + 1 of the n weights in
each 128 columns, so one even where none is asked: modules of sparsity 0 are no targets.
"""

from collections.abc import Mapping
from typing import Literal

_MODIFIERS = {"sparsegpt": "SparseGPTModifier", "wanda": "WandaPruningModifier"}


def pruning_recipe(sparsities: Mapping[str, float], *, method: Literal["sparsegpt", "wanda"] = "sparsegpt") -> str:
    """The YAML text of a recipe that prunes every named module to its sparsity.

    Args:
      sparsities: `module name in the PyTorch model -> share of weights to remove`, in the order of the model's modules.
        A decoder layer stands for all projections in it. Those of 0 are left out.
      method: which modifier prunes.

    Returns:
      YAML for `oneshot(recipe=...)`.

    Raises:
      ValueError: if no module has a sparsity above 0, or one is not in [0, 1).
    """
    wrong = {name: share for name, share in sparsities.items() if not 0 <= share < 1}
    pruned = {name: share for name, share in sparsities.items() if share}
    if wrong or not pruned:
        msg = f"a recipe needs at least one module to prune, and sparsities in [0, 1); got {wrong or 'none'}."
        raise ValueError(msg)
    return "\n".join([
        "pruning_stage:",
        "  pruning_modifiers:",
        f"    {_MODIFIERS[method]}:",
        '      mask_structure: "0:0"',
        "      sparsity:  # in the order of the targets, which is that of the model's modules",
        *(f"        - {float(share)!r}" for share in pruned.values()),
        "      targets:",
        *(f"        - {name}" for name in pruned),
        "",
    ])
