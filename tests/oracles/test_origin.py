"""What transformers makes of a directory before and after we wrote the model again: ids, messages, settings, names."""

import json

import jax.numpy as jnp
import pytest
import tokenizers
import torch
import transformers

from curvjax.models import config_from_hf, load_model, save_checkpoint, save_hf
from curvjax.models.hf_names import stored_layer
from curvjax.runs.export import export_peft_config, export_recipe
from curvjax.runs.export_settings import ExportSettings
from curvjax.surgery import drop_layers, prune_magnitude
from tests.interop.problems import planned
from tests.models.families import FAMILIES, golden, weights, write_checkpoint
from tests.models.gguf_files import converted, metadata, write_gguf
from tests.models.test_gguf import CONFIGS

pytestmark = pytest.mark.oracle

CHAT = [{"role": "w1", "content": "w2 w3"}, {"role": "w4", "content": "w5"}]
_WRITERS_OWN = {"saved_by_curvjax", "_name_or_path", "architectures"}
TEMPLATE = "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
SHOUTING = "{% for m in messages %}{{ m['content'] }} w9 {% endfor %}"


def write_chat_model(family, directory):
    """A directory as transformers saves it: tokenizer with two templates, generation settings, weights in bfloat16."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"w{number}": number for number in range(4, 60)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary | {"w1": 60, "w2": 61, "w3": 62}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"padding_side": "left", "truncation_side": "left", "model_max_length": 40}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ends, **settings)
    tokenizer.add_tokens(["<tool>"], special_tokens=True)
    tokenizer.chat_template = {"default": TEMPLATE, "shouting": SHOUTING}
    config = transformers.AutoConfig.for_model(**FAMILIES[family], attention_dropout=0.125)
    config.save_pretrained(directory)
    tensors = {name: v.astype(jnp.bfloat16) for name, v in weights(family, golden(family).shapes).items()}
    write_checkpoint(directory, config.to_dict() | {"dtype": "bfloat16"}, tensors)
    tokenizer.save_pretrained(directory)
    generation = transformers.GenerationConfig(eos_token_id=[2, 5], pad_token_id=3, temperature=0.5, do_sample=True)
    generation.save_pretrained(directory)
    return directory


def seen(directory):
    """What a user of transformers meets."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    return {
        "chat": tokenizer.apply_chat_template(CHAT, chat_template="default")["input_ids"],
        "shouting": tokenizer.apply_chat_template(CHAT, chat_template="shouting")["input_ids"],
        "ids": tokenizer(["w1 <tool> none", "w2"], padding=True)["input_ids"],
        "special": tokenizer.special_tokens_map,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length, len(tokenizer)),
        "generation": transformers.GenerationConfig.from_pretrained(directory).to_dict(),
        "config": {k: v for k, v in config.to_dict().items() if k not in _WRITERS_OWN},
        "dtypes": {str(parameter.dtype) for parameter in model.parameters()},
    }


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in {"llama_biased", "opt_post"}])
def test_a_rebuilt_model_is_met_as_its_original_was(family, tmp_path):
    before = seen(write_chat_model(family, tmp_path / "model"))
    assert len(set(map(str, (before["chat"], before["shouting"])))) == 2
    loaded = load_model(tmp_path / "model")
    pruned = prune_magnitude(loaded.model, {"layers.1": 0.5, "layers.10": 0.25}).model
    save_hf(pruned, tmp_path / "pruned", tokenizer=loaded.tokenizer, beside=loaded.beside)
    save_checkpoint(pruned, tmp_path / "own", tokenizer=loaded.tokenizer, beside=loaded.beside)
    own = load_model(tmp_path / "own")
    save_hf(own.model, tmp_path / "later", tokenizer=own.tokenizer, beside=own.beside)
    assert seen(tmp_path / "pruned") == before
    assert seen(tmp_path / "later") == before
    shallow = drop_layers(loaded.model, [1, 11])
    save_hf(shallow, tmp_path / "shallow", tokenizer=loaded.tokenizer, beside=loaded.beside)
    after = seen(tmp_path / "shallow")
    assert {key: after[key] for key in after if key != "config"} == {k: before[k] for k in before if k != "config"}
    moved = {key for key, value in before["config"].items() if after["config"].get(key, "lost") != value}
    assert moved <= {"num_hidden_layers", "n_layer", "n_inner", "layer_types"}  # n_inner: null, or what that means


def test_a_gguf_files_chat_and_special_tokens_reach_transformers(tmp_path):
    more = {"tokenizer.chat_template": "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"}
    tensors = converted(CONFIGS["qwen3"], weights("qwen3", golden("qwen3").shapes))
    write_gguf(tmp_path / "tiny.gguf", metadata(CONFIGS["qwen3"]) | more, tensors)
    loaded = load_model(tmp_path / "tiny.gguf")
    save_hf(loaded.model, tmp_path / "out", tokenizer=loaded.tokenizer, beside=loaded.beside)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a!!"}])["input_ids"]
    assert ids == loaded.tokenizer.encode("<s>a!!</s>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == loaded.config.max_positions


@pytest.mark.parametrize("family", FAMILIES)
def test_every_exported_name_is_a_module_of_transformers_and_comes_in_its_order(family, tmp_path):
    entries = FAMILIES[family]
    config = config_from_hf(entries)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**entries))
    modules = dict(model.named_modules())
    assert stored_layer(config, 10) in modules
    gates = [] if config.architecture in {"opt", "gpt2"} else ["mlp.gate_proj"]
    heads = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    paths = [*heads, *gates, "mlp.up_proj", "mlp.down_proj"]
    ranks = planned("rank", {"layers.2": 1, "layers.10": 1}, config.architecture, paths, maximum=8.0)
    halves = {f"layers.3.{path}": 1 for path in paths}
    sparsities = planned("sparsity", halves, config.architecture, paths, size=2)
    if config.architecture == "gpt2":
        for write, fused in ((export_peft_config, ranks), (export_recipe, sparsities)):
            with pytest.raises(ValueError, match="gpt2 has no linear module"):
                write(fused, ExportSettings(), tmp_path / "out")
        return
    export_peft_config(ranks, ExportSettings(), tmp_path / "peft")
    adapted = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert set(adapted["target_modules"]) <= modules.keys()
    assert all(isinstance(modules[name], torch.nn.Linear) for name in adapted["target_modules"])
    text = export_recipe(sparsities, ExportSettings(), tmp_path / "r").read_text()
    targets = [line.strip("- ") for line in text.partition("targets:\n")[2].splitlines()]
    assert targets == [name for name in modules if name in targets]  # llm-compressor pairs them in this order
    assert len(targets) == len(halves)
