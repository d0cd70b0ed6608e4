"""What other programs make of our files: PEFT's adapters, transformers' models, torch on CPU in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx

from curvjax.data import Batch
from curvjax.interop import load_peft, save_peft, save_peft_experts
from curvjax.models import load_hf, save_hf
from curvjax.runs.export import export_peft_config
from curvjax.runs.export_settings import ExportSettings
from curvjax.surgery import (
    LoRA,
    add_experts,
    classic_scale,
    constant_scale,
    drop_layers,
    factorize_svd,
    layer_projections,
    lora_parameters,
    lora_ranks,
    merge_factors,
    merge_lora,
    projections,
    prune_channels,
    prune_magnitude,
    rank_stabilised_scale,
    single_expert,
    with_lora_parameters,
)
from tests.interop.problems import LAYER_RANKS, decoder, layer_ranks, planned, with_adapters
from tests.models.families import FAMILIES, golden, weights, write_checkpoint
from tests.oracles.reference import logits

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

TOKENS = np.random.default_rng(1).integers(0, 64, (2, 24)).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """The model as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("base") / "model"
    save_hf(model, directory)
    return directory


def ranks_of(model, cost):
    """An allocation of `LAYER_RANKS`."""
    amounts = {f"layers.{layer}": rank for layer, rank in enumerate(LAYER_RANKS)}
    return planned("rank", amounts, "llama", layer_projections(model), cost=cost, maximum=16.0)


def ours(model):
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graph, state)(TOKENS))(state))


def causal(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


def theirs(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()


def adapted_modules(model):
    """PEFT's adapters by our names."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    return {name.partition("model.layers.")[2].join(("layers.", "")): module for name, module in found.items()}


@pytest.mark.parametrize("scaling", [constant_scale, classic_scale, rank_stabilised_scale])
def test_peft_loads_our_adapter_with_equal_ranks_scales_and_logits(model, base, tmp_path, scaling):
    adapted = with_adapters(model, layer_ranks(model), scaling=scaling, alpha=1.5)
    stabilised = scaling is rank_stabilised_scale
    save_peft(adapted, tmp_path / "adapter", base=str(base), rank_stabilised=stabilised)
    loaded = peft.PeftModel.from_pretrained(causal(base), tmp_path / "adapter")
    modules = adapted_modules(loaded)
    assert {name: module.r["default"] for name, module in modules.items()} == lora_ranks(adapted)
    for name, module in modules.items():
        assert module.scaling["default"] == pytest.approx(projections(adapted)[name].scale, rel=2e-15)
        assert module.use_rslora["default"] is stabilised
    assert np.abs(ours(adapted) - ours(model)).max() > 0.1  # the adapters do something
    # Two float32 programs on random weights: 1.1e-4 was seen in one logit of 3,072.
    np.testing.assert_allclose(theirs(loaded), ours(adapted), atol=2e-4, rtol=0)


def test_peft_merges_to_what_we_merge_to(model, base, tmp_path):
    adapted = with_adapters(model, layer_ranks(model))
    save_peft(adapted, tmp_path / "adapter", base=str(base))
    save_hf(merge_lora(adapted), tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(causal(base), tmp_path / "adapter")
    merged, mine, plain = (
        loaded.merge_and_unload().state_dict(),
        causal(tmp_path / "merged").state_dict(),
        causal(base).state_dict(),
    )
    assert merged.keys() == mine.keys()
    for name, value in merged.items():
        torch.testing.assert_close(mine[name], value, atol=1e-6, rtol=0)
    path, linear = "layers.10.mlp.up_proj", projections(adapted)["layers.10.mlp.up_proj"]
    by_hand = np.asarray(linear.kernel[...]) + linear.scale * np.asarray(linear.lora_a[...]) @ np.asarray(
        linear.lora_b[...]
    )
    np.testing.assert_allclose(merged[f"model.{path}.weight"].numpy().T, by_hand, atol=1e-6, rtol=0)
    assert not torch.allclose(merged[f"model.{path}.weight"], plain[f"model.{path}.weight"], atol=1e-2)
    np.testing.assert_allclose(logits(tmp_path / "merged", TOKENS), ours(adapted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scaling", ["constant", "rank-stabilised"])
def test_an_allocation_trains_in_peft_and_comes_back(model, base, tmp_path, scaling):
    settings = ExportSettings(projections=("q_proj", "v_proj", "down_proj"), scaling=scaling, base=str(base))
    export_peft_config(ranks_of(model, 1.0), settings, tmp_path / "config")
    torch.manual_seed(1)
    trained = peft.get_peft_model(causal(base), peft.LoraConfig.from_pretrained(tmp_path / "config"))
    modules = adapted_modules(trained)
    assert {name: module.r["default"] for name, module in modules.items()} == {
        f"layers.{layer}.{place}": rank
        for layer, rank in enumerate(LAYER_RANKS)
        for place in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
        if rank
    }
    for module in modules.values():
        divisor = math.sqrt(module.r["default"]) if scaling == "rank-stabilised" else 1
        assert module.scaling["default"] == pytest.approx(2.0 / divisor, rel=2e-15)
        torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)  # as if trained
    trained.save_pretrained(tmp_path / "trained")
    back = load_peft(model, tmp_path / "trained")
    assert np.abs(ours(back) - ours(model)).max() > 0.1
    np.testing.assert_allclose(ours(back), theirs(trained), atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", ["gradient", "gora"])
def test_peft_trains_on_from_a_start_by_a_text(model, base, tmp_path, start):
    ones, targets = np.ones(TOKENS.shape, np.int32), np.roll(TOKENS, -1, axis=1)
    weights = np.concatenate([ones[:, :-1], 0 * ones[:, :1]], axis=1).astype(np.float32)
    batch = Batch(*map(jnp.asarray, (TOKENS, targets, weights, np.cumsum(ones, axis=1) - 1, ones)))
    born = LoRA(start=start)(model, {"layers.1.self_attn.q_proj": 2, "layers.10.mlp.up_proj": 3}, batch).model
    save_peft(born, tmp_path / "adapter", base=str(base))
    loaded = peft.PeftModel.from_pretrained(causal(base), tmp_path / "adapter", is_trainable=True)
    np.testing.assert_allclose(theirs(loaded), ours(born), atol=2e-4, rtol=0)
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    learned = {name: value for name, value in loaded.named_parameters() if value.requires_grad}
    assert len(learned) == 4
    before = loaded(tokens, labels=tokens).loss
    before.backward()
    torch.optim.SGD(learned.values(), lr=0.1).step()
    assert loaded(tokens, labels=tokens).loss < before
    assert all(value.abs().max() > 0 for value in learned.values())


def test_peft_trains_as_many_parameters_as_an_export_says(model, base, tmp_path):
    """On random weights: the configuration alone decides ranks and parameters."""
    sides = {path: sum(linear.kernel.shape) for path, linear in projections(model).items() if path != "lm_head"}
    cost = sum(size for path, size in sides.items() if path.startswith("layers.0."))
    written = export_peft_config(ranks_of(model, float(cost)), ExportSettings(base=str(base)), tmp_path / "config")
    empty = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(base))
    built = peft.get_peft_model(empty, peft.LoraConfig.from_pretrained(tmp_path / "config"))
    found = {name: module.r["default"] for name, module in adapted_modules(built).items()}
    assert found == {path: rank for path in sides if (rank := LAYER_RANKS[int(path.split(".")[1])])}
    assert built.get_nb_trainable_parameters()[0] == written.parameters
    assert written.parameters == sum(rank * sides[path] for path, rank in found.items())
    assert written.max_rank == max(found.values())


@pytest.mark.parametrize("edit", ["dropped", "pruned", "channels", "factorised"])
def test_transformers_loads_what_surgery_leaves(model, tmp_path, edit):
    energies = {f"layers.{layer}.mlp.down_proj": np.ones(48, np.float32) for layer in range(12)}
    thin = {path: 4 for path in projections(model) if path.startswith(("layers.1.", "layers.10.", "layers.11."))}
    edited = {
        "dropped": lambda: drop_layers(model, [1, 10]),
        "pruned": lambda: prune_magnitude(model, {f"layers.{layer}": layer / 16 for layer in range(12)}).model,
        "channels": lambda: prune_channels(model, energies, {f"layers.{layer}": 8 for layer in range(12)}).model,
        "factorised": lambda: merge_factors(factorize_svd(model, thin).model),
    }[edit]()
    save_hf(edited, tmp_path / "model")
    found = logits(tmp_path / "model", TOKENS)
    assert np.abs(found - ours(model)).max() > 1e-2
    np.testing.assert_allclose(found, ours(edited), atol=1e-4, rtol=0)
    other = causal(tmp_path / "model")
    assert other.config.num_hidden_layers == len(other.model.layers) == len(edited.layers)
    stored = {name.removesuffix(".weight"): int((value == 0).sum()) for name, value in other.state_dict().items()}
    zeros = {path: int(np.sum(np.asarray(linear.kernel[...]) == 0)) for path, linear in projections(edited).items()}
    assert zeros == {path: stored[path if path == "lm_head" else f"model.{path}"] for path in zeros}
    assert (sum(zeros.values()) > 0) is (edit == "pruned")


def test_an_adapter_goes_on_a_model_of_fewer_layers(model, tmp_path):
    shallow = drop_layers(model, [0, 2])
    adapted = with_adapters(shallow, {"layers.9.self_attn.o_proj": 4, "layers.1.mlp.gate_proj": 1})
    save_hf(shallow, tmp_path / "model")
    save_peft(adapted, tmp_path / "adapter", base=str(tmp_path / "model"))
    loaded = peft.PeftModel.from_pretrained(causal(tmp_path / "model"), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(loaded), ours(adapted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["opt", "gemma3"])
def test_other_families_have_their_own_names_and_norms(family, tmp_path):
    stored = weights(family, golden(family).shapes)
    model = load_hf(write_checkpoint(tmp_path / "model", FAMILIES[family], stored)).model
    ranks = {"layers.1.self_attn.o_proj": 2, "layers.10.self_attn.q_proj": 3, "layers.11.mlp.down_proj": 4}
    adapted = with_adapters(model, ranks)
    save_peft(adapted, tmp_path / "adapter", base=str(tmp_path / "model"))
    loaded = peft.PeftModel.from_pretrained(causal(tmp_path / "model"), tmp_path / "adapter")
    np.testing.assert_allclose(theirs(loaded), ours(adapted), atol=1e-4, rtol=0)
    assert np.abs(ours(adapted) - ours(model)).max() > 1e-2


def test_peft_holds_our_experts_and_with_the_routers_gives_the_mixture(model, base, tmp_path):
    """Each expert is an adapter of one PEFT model; with the gates of router.safetensors their sum is our mixture."""
    amounts = {"layers.1.self_attn.q_proj": 3, "layers.10.mlp.up_proj": 2}
    born = add_experts(model, amounts, rank=2, key=jax.random.key(1), scale=0.3)
    rng = np.random.default_rng(1)
    drawn = {path: jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype) for path, a in lora_parameters(born).items()}
    mixed = with_lora_parameters(born, drawn)
    save_peft_experts(mixed, tmp_path / "experts", base=str(base))
    loaded = peft.PeftModel.from_pretrained(causal(base), tmp_path / "experts" / "expert_0", adapter_name="expert_0")
    for expert in (1, 2):
        loaded.load_adapter(tmp_path / "experts" / f"expert_{expert}", adapter_name=f"expert_{expert}")
    for expert in range(3):
        loaded.set_adapter(f"expert_{expert}")
        np.testing.assert_allclose(theirs(loaded), ours(single_expert(mixed, expert)), atol=2e-4, rtol=0)
    routers = safetensors.torch.load_file(tmp_path / "experts" / "router.safetensors")

    def mixture(module, weight):
        def forward(x):
            gates = torch.softmax(x @ weight.T, dim=-1)
            kept = torch.zeros_like(gates).scatter(-1, gates.topk(2, dim=-1).indices, 1.0) * gates
            kept = kept / kept.sum(-1, keepdim=True)
            names = [f"expert_{e}" for e in range(len(weight))]
            parts = [module.scaling[name] * module.lora_B[name](module.lora_A[name](x)) for name in names]
            return module.base_layer(x) + sum(kept[..., [e]] * part for e, part in enumerate(parts))

        return forward

    for name, module in adapted_modules(loaded).items():
        module.forward = mixture(module, routers[f"model.{name}.router.weight"])
    np.testing.assert_allclose(theirs(loaded), ours(mixed), atol=2e-4, rtol=0)
    assert np.abs(ours(mixed) - ours(model)).max() > 0.1
