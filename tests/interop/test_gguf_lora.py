import dataclasses

import numpy as np
import pytest
from gguf import GGUFReader

from curvjax.interop import save_gguf_lora
from curvjax.models import gguf_tensor
from curvjax.surgery import count_lora, lora_ranks, merge_lora, projections
from curvjax.surgery.growing.dora import add_magnitudes
from tests.interop.problems import CONFIG, decoder, layer_ranks, with_adapters


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_file_has_what_merging_adds_in_the_order_of_the_base_models_rows(tmp_path, architecture):
    config = dataclasses.replace(CONFIG, architecture=architecture)
    model = decoder(config)
    adapted = with_adapters(model, layer_ranks(model))
    written = save_gguf_lora(adapted, tmp_path / "out")
    assert written == (len(lora_ranks(adapted)), 6, count_lora(adapted))
    reader = GGUFReader(tmp_path / "out" / "adapter.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    before, after = projections(model), projections(merge_lora(adapted))
    assert len(found) == 2 * len(lora_ranks(adapted))
    for path, rank in lora_ranks(adapted).items():
        name, was = gguf_tensor(f"{path}.kernel", np.asarray(before[path].kernel[...]), config)
        _, merged = gguf_tensor(f"{path}.kernel", np.asarray(after[path].kernel[...]), config)
        assert found[f"{name}.lora_a"].shape[0] == rank
        np.testing.assert_allclose(was + found[f"{name}.lora_b"] @ found[f"{name}.lora_a"], merged, rtol=0, atol=1e-6)


def test_what_llama_cpp_has_no_place_for_is_refused(tmp_path):
    model = decoder()
    with pytest.raises(ValueError, match="there must be one; got others: none at all"):
        save_gguf_lora(model, tmp_path / "out")
    adapted = with_adapters(model, {"layers.1.mlp.up_proj": 2})
    with pytest.raises(ValueError, match=r"got others: \['layers\.1\.mlp\.up_proj \(DoRALinear\)'\]"):
        save_gguf_lora(add_magnitudes(adapted), tmp_path / "out")
    other = dataclasses.replace(CONFIG, architecture="opt")
    with pytest.raises(ValueError, match=r"are of gemma2, .* with layers alike; this model is of opt"):
        save_gguf_lora(with_adapters(decoder(other), {"layers.1.mlp.up_proj": 2}), tmp_path / "out")
    apart = dataclasses.replace(CONFIG, intermediate_sizes=(48,) * 11 + (40,))
    with pytest.raises(ValueError, match="this model is of layers that differ in size"):
        save_gguf_lora(with_adapters(decoder(apart), {"layers.1.mlp.up_proj": 2}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
