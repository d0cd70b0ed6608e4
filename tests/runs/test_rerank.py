"""`rerank` through the front door: our adapters and PEFT's, and the metric of a text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import curvjax as cj
from curvjax.interop import save_peft
from curvjax.models import Loaded
from curvjax.surgery import add_lora, lora_parameters, lora_ranks, merge_lora, with_lora_parameters
from curvjax.surgery.growing.lora import adapters
from curvjax.testing import tiny_model
from tests.runs.tiny import rows

RANKS = {"layers.0.self_attn.q_proj": 3, "layers.0.mlp.up_proj": 3, "layers.1.mlp.down_proj": 3}


@pytest.fixture(scope="module")
def base():
    return tiny_model(layers=2)


@pytest.fixture(scope="module")
def tuned(base):
    born = add_lora(base.model, RANKS, key=jax.random.key(1), alpha=0.3)
    rng = np.random.default_rng(1)
    drawn = {p: jnp.asarray(rng.normal(size=v.shape), v.dtype) for p, v in lora_parameters(born).items()}
    return Loaded(with_lora_parameters(born, drawn), base.tokenizer, base.config, "tuned")


def test_an_adapter_of_peft_is_cut_and_leaves_for_peft_again(base, tuned, tmp_path):
    save_peft(tuned.model, tmp_path / "wide", base="tiny")
    ours, theirs = cj.rerank(tuned, 4), cj.rerank(base, 4, adapter=tmp_path / "wide")
    assert lora_ranks(ours.model) == lora_ranks(theirs.model)
    cj.save(theirs, tmp_path / "narrow", format="peft")
    again = cj.rerank(base, 4, adapter=tmp_path / "narrow")
    assert lora_ranks(again.model) == lora_ranks(theirs.model)
    assert cj.rerank(ours, 2).total == 2
    assert theirs.origin.model == base.origin


def test_with_a_text_the_first_layers_outputs_move_least(tuned):
    """Of adapters whose inputs the cut does not change, no ranks of the plain cut do better on the text."""
    text = rows(tuned)
    plain, weighed = cj.rerank(tuned, 4), cj.rerank(tuned, 4, text=text)
    assert weighed.evidence["metric"]
    assert weighed.origin.text == text.origin
    path = "layers.0.self_attn.q_proj"
    block, batch = merge_lora(tuned.model).layers[0], text.batch
    stream = tuned.model.embed(batch.tokens, batch.positions)
    x = block.input_layernorm(stream).reshape(-1, stream.shape[-1])[np.ravel(batch.segments) > 0]

    def lost(model, rank):
        each = adapters(model).get(path)
        moved = 0.0 if each is None else each.folded() - each.kernel[...]
        whole = adapters(tuned.model)[path]
        full = whole.folded() - whole.kernel[...]
        values = np.linalg.svd(np.asarray(x @ full), compute_uv=False)
        return float(np.sum(np.square(x @ (full - moved)))), float(np.sum(values[rank:] ** 2))

    rank = lora_ranks(weighed.model).get(path, 0)
    found, best = lost(weighed.model, rank)
    assert found == pytest.approx(best, rel=1e-3)  # float32
    found, best = lost(plain.model, lora_ranks(plain.model).get(path, 0))
    assert found >= best * (1 - 1e-3)


def test_a_wrapped_model_has_no_adapters():
    wrapped = cj.wrap(
        outer={},
        embed=lambda outer, batch: batch,
        blocks=[{"w": jnp.eye(2)}],
        block=lambda block, x, batch: x @ block["w"],
        readout=lambda outer, x, batch: x,
        loss=lambda z, batch: z.sum(),
        count=lambda batch: 1.0,
    )
    with pytest.raises(ValueError, match=r"rerank needs a decoder of curvjax\.load"):
        cj.rerank(wrapped, 1)
