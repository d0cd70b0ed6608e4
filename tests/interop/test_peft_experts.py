"""Mixtures in files of other programs: from them alone the mixture can be computed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from curvjax.interop import load_peft, save_peft_experts
from curvjax.surgery import add_experts, lora_parameters, mixtures, single_expert, with_lora_parameters
from curvjax.surgery.growing.lora import adapters
from tests.interop.problems import decoder, with_adapters

Q1, UP10, ONE = "layers.1.self_attn.q_proj", "layers.10.mlp.up_proj", "layers.3.mlp.down_proj"


@pytest.fixture(scope="module")
def mixed():
    born = add_experts(decoder(), {Q1: 3, UP10: 2, ONE: 1}, rank=2, key=jax.random.key(1), scale=0.5)
    rng = np.random.default_rng(1)
    drawn = {path: rng.normal(size=array.shape) for path, array in lora_parameters(born).items()}
    return with_lora_parameters(born, {path: jnp.asarray(each, jnp.float32) for path, each in drawn.items()})


@pytest.fixture(scope="module")
def folder(mixed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("experts") / "out"
    written = save_peft_experts(mixed, directory, base="org/base")
    assert written == (3, 2, sum(array.size for array in lora_parameters(mixed).values()))
    return directory


def test_the_files_alone_give_the_mixture(mixed, folder):
    """Every projection's change, in NumPy, from PEFT's matrices and scale, the router, and what its metadata says."""
    routers = load_file(folder / "router.safetensors")
    with safe_open(folder / "router.safetensors", "numpy") as file:
        about = file.metadata()
    top = json.loads(about["top_k"])
    assert "softmax" in about["gates"]
    for path, mixture in mixtures(mixed).items():
        name = f"model.{path}"
        weight = routers[f"{name}.router.weight"]
        x = np.random.default_rng(2).normal(size=(9, weight.shape[1]))
        scores = x @ weight.T
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[p < np.sort(p, axis=1)[:, -top[name]][:, None]] = 0.0
        gates, change = p / p.sum(1, keepdims=True), 0.0
        for expert in range(len(weight)):
            config = json.loads((folder / f"expert_{expert}" / "adapter_config.json").read_text())
            tensors = load_file(folder / f"expert_{expert}" / "adapter_model.safetensors")
            a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            scale = config["alpha_pattern"][name] / config["rank_pattern"][name]
            change = change + gates[:, [expert]] * scale * (x @ a.T @ b.T)
        assert np.allclose(mixture.change(jnp.asarray(x, jnp.float32)), change, atol=1e-4)
    assert set(routers) == {f"model.{path}.router.weight" for path in (Q1, UP10)}


def test_each_expert_is_an_adapter_that_comes_back(mixed, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["expert_0", "expert_1", "expert_2", "router.safetensors"]
    for expert, there in enumerate([{Q1, UP10, ONE}, {Q1, UP10}, {Q1}]):
        again = load_peft(decoder(), folder / f"expert_{expert}")
        assert set(adapters(again)) == there
        jax.tree.map(
            np.testing.assert_array_equal, lora_parameters(again), lora_parameters(single_expert(mixed, expert))
        )
        assert all(adapter.scale == pytest.approx(0.5) for adapter in adapters(again).values())


def test_a_model_without_mixtures_and_a_folder_with_files_are_refused(mixed, folder, tmp_path):
    with pytest.raises(ValueError, match="no mixtures of LoRA experts; write a plain adapter"):
        save_peft_experts(with_adapters(decoder(), {Q1: 2}), tmp_path / "out", base="base")
    with pytest.raises(FileExistsError, match="is not empty"):
        save_peft_experts(mixed, folder, base="base")
