import pytest

from curvjax.interop import pruning_recipe

TEXT = """\
pruning_stage:
  pruning_modifiers:
    SparseGPTModifier:
      mask_structure: "0:0"
      sparsity:  # in the order of the targets, which is that of the model's modules
        - 0.25
        - 0.1
      targets:
        - model.layers.1
        - model.layers.10
"""


def test_the_text_is_llm_compressors_and_names_what_is_pruned():
    assert pruning_recipe({"model.layers.1": 0.25, "model.layers.2": 0, "model.layers.10": 0.1}) == TEXT


def test_wanda_has_the_other_name():
    assert "    WandaPruningModifier:\n" in pruning_recipe({"model.layers.1": 0.5}, method="wanda")


@pytest.mark.parametrize("sparsities", [{}, {"a": 0.0}, {"a": 1.0}, {"a": 0.5, "b": -0.1}, {"a": float("nan")}])
def test_what_is_no_sparsity_is_refused(sparsities):
    with pytest.raises(ValueError, match=r"at least one module to prune, and sparsities in \[0, 1\)"):
        pruning_recipe(sparsities)
