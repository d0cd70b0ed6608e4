"""Someone else's decoder: weights of all layers in one array for `lax.scan`, names of its own, experts for MLPs."""

import jax
import jax.numpy as jnp

import curvjax as cj

LAYERS, WIDTH, EXPERTS, INNER, VOCAB, LENGTH = 12, 4, 2, 3, 7, 5


def weights(seed=1):
    shapes = {
        "pre_attn": (WIDTH,), "qkv": (WIDTH, 3, WIDTH), "proj": (WIDTH, WIDTH), "pre_moe": (WIDTH,),
        "router": (WIDTH, EXPERTS), "wi": (EXPERTS, WIDTH, INNER), "wo": (EXPERTS, INNER, WIDTH),
    }  # fmt: skip
    keys = iter(jax.random.split(jax.random.key(seed), len(shapes) + 2))
    stack = {name: jax.random.normal(next(keys), (LAYERS, *shape), float) for name, shape in shapes.items()}
    table = jax.random.normal(next(keys), (VOCAB, WIDTH), float)
    return {"tok": table, "decoder": stack, "head": jax.random.normal(next(keys), (WIDTH, VOCAB), float)}


def rms(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * jnp.broadcast_to(scale, x.shape)


def layer(p, x, segment):
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dce->btce", rms(x, p["pre_attn"]), p["qkv"]), 2, 0)
    seen = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool)) & (segment[:, :, None] == segment[:, None])
    scores = jnp.where(seen, jnp.einsum("bte,bse->bts", q, k), -1e9)
    x = x + jnp.einsum("bts,bse,ed->btd", jax.nn.softmax(scores), v, p["proj"])
    y = rms(x, p["pre_moe"])
    gate, chosen = jax.lax.top_k(jax.nn.softmax(y @ p["router"]), 1)
    mask = jax.nn.one_hot(chosen[..., 0], EXPERTS, dtype=x.dtype) * gate
    inner = jax.nn.silu(jnp.einsum("btd,edf->btef", y, p["wi"]))
    return x + jnp.einsum("bte,btef,efd->btd", mask, inner, p["wo"])


def logits(params, batch):
    """As its own repository would run it."""
    x, _ = jax.lax.scan(
        lambda x, p: (layer(p, x, batch["segment"]), None), params["tok"][batch["inputs"]], params["decoder"]
    )
    return x @ params["head"]


def summed(z, batch):
    nats = jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, batch["labels"][..., None], -1)[..., 0]
    return jnp.sum(nats * batch["mask"])


def wrapped(params=None, **changes):
    params = params or weights()
    given = {
        "outer": {"tok": params["tok"], "head": params["head"]},
        "embed": lambda outer, batch: outer["tok"][batch["inputs"]],
        "blocks": params["decoder"],
        "stacked": 0,
        "block": lambda p, x, batch: layer(p, x, batch["segment"]),
        "readout": lambda outer, x, batch: x @ outer["head"],
        "loss": summed,
        "count": lambda batch: jnp.sum(batch["mask"]),
        "name": "foreign",
    }
    return cj.wrap(**given | changes)


def batch(seed=1, rows=4):
    tokens = jax.random.randint(jax.random.key(seed), (rows, LENGTH + 1), 0, VOCAB)
    mask = (jax.random.uniform(jax.random.key(seed + 50), (rows, LENGTH), float) > 0.3).astype(float)
    segment = jnp.broadcast_to(jnp.asarray([0, 0, 1, 1, 1]), (rows, LENGTH))
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:], "mask": mask, "segment": segment}
