"""Every field of PEFT's LoraConfig at other values than its default: we compute what PEFT does, or refuse by name."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers

from curvjax.interop import load_peft
from curvjax.models import save_hf
from tests.interop.problems import decoder

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # PEFT warns of most of these values, which is beside the point
]

TOKENS = np.random.default_rng(1).integers(0, 64, (1, 12)).astype(np.int32)
VALUES = {
    "task_type": ["SEQ_CLS"],
    "peft_type": ["LOHA"],
    "auto_mapping": [{"base_model_class": "x"}],
    "peft_version": ["0.9.0"],
    "base_model_name_or_path": ["elsewhere"],
    "revision": ["main"],
    "inference_mode": [True],
    "r": [5],
    "target_modules": [["q_proj"], r".*\.q_proj", ["q_proj", "v_proj", "up_proj"]],
    "exclude_modules": [["v_proj"], ["layers.3.self_attn.q_proj"], r".*\.o_proj"],
    "lora_alpha": [3, 0.5],
    "lora_dropout": [0.3],
    "fan_in_fan_out": [True],
    "bias": ["all", "lora_only"],
    "use_rslora": [True],
    "modules_to_save": [["lm_head"]],
    "init_lora_weights": [True, "gaussian", "orthogonal", "pissa", "olora", "loftq", "corda", "eva", "mica"],
    "layers_to_transform": [[1, 10], 3],
    "layers_pattern": ["layers"],
    "rank_pattern": [{"layers.1.self_attn.q_proj": 2}],
    "alpha_pattern": [{"layers.1.self_attn.q_proj": 5.0}, {"q_proj": 2.0}],
    "megatron_config": [{"hidden_size": 32}],
    "megatron_core": ["megatron.other"],
    "trainable_token_indices": [[1, 2]],
    "loftq_config": [{"loftq_bits": 4}],
    "eva_config": [{"rho": 2.0}],
    "corda_config": [{"corda_method": "ipm"}],
    "lora_ga_config": [{"direction": "ArB2r"}],
    "use_dora": [True],
    "velora_config": [{"num_groups": 2}],
    "alora_invocation_tokens": [[3, 4]],
    "use_qalora": [True],
    "qalora_group_size": [8],
    "monteclora_config": [{"num_samples": 2}],
    "layer_replication": [[[0, 4], [2, 12]]],
    "runtime_config": [{"ephemeral_gpu_offload": True}],
    "lora_bias": [True],
    "target_parameters": [["mlp.experts"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"beta": 0.1}],
    "ensure_weight_tying": [True],
}
FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    save_hf(model, directory := tmp_path_factory.mktemp("base") / "model")
    return directory


def causal(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """An adapter as if trained, as PEFT saves it."""
    torch.manual_seed(1)
    plain = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(causal(base), plain).save_pretrained(directory := tmp_path_factory.mktemp("adapter") / "a")
    return directory


def test_no_field_of_the_installed_peft_is_forgotten():
    assert set(FIELDS) == VALUES.keys()


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in VALUES for value in VALUES[field]], ids=str)
def test_a_saved_adapter_with_another_value_is_right_or_refused_by_name(model, base, trained, tmp_path, field, value):
    weights = (trained / "adapter_model.safetensors").read_bytes()
    entries = json.loads((trained / "adapter_config.json").read_text()) | {field: value}
    if field == "layers_pattern":
        entries["layers_to_transform"] = list(range(12))
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(entries))
    try:
        found = np.asarray(load_peft(model, tmp_path)(TOKENS))
    except ValueError as error:
        if field not in str(error):
            pytest.fail(f"{field} is not named: {error}")
        return
    torch.manual_seed(2)
    np.testing.assert_allclose(found, logits(peft.PeftModel.from_pretrained(causal(base), tmp_path)), atol=1e-4, rtol=0)
