"""Claim: Shapley values of layers choose better with more orders, a bounded game, or a network that learns the game.

    nice .venv/bin/python -m experiments.depth.shapley        # two cores, 15 minutes; writes shapley.json

SmolLM2-135M, 8 pairs of orders on the texts of `experiments.depth.run`. Games: the loss; the loss, at most that of an
even guess; one over perplexity. Each by 2, 4 and 8 pairs: standard errors against the spread of the values over layers,
and the loss on test texts less the 3 and the 6 layers of least value. The network is fitted to the models of the other
pairs' orders and taken as a control variate, which leaves the values unbiased:

    phi = mean_p [ phi(f_p) + c_p - c_p(f_p) ],    f_p: fitted without pair p, c: contributions in the pair's orders.

Refuted where errors stay, or where layers so chosen are missed more than those of `greedy`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Float

from curvjax.evaluation import perplexity
from curvjax.models import Loaded, load_model
from curvjax.records import machine, plain, versions, write_json
from curvjax.runs.objective import objective
from curvjax.runs.skips import contributions, drawn_orders
from curvjax.runs.text import Text
from curvjax.scores.reading import standard_errors
from curvjax.surgery import drop_layers
from experiments.depth.run import FOLDER, Settings, texts

Order = list[int]
Values = Callable[[Float[np.ndarray, "N L"]], Float[np.ndarray, " N"]]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Sizes."""

    study: Settings = field(default_factory=Settings)
    """Model, texts and counts of layers."""
    pairs: tuple[int, ...] = (2, 4, 8)
    """Pairs of orders that values are the mean of."""
    networks: int = 3
    """Whose predictions are averaged."""
    width: int = 64
    """Of their two hidden layers."""
    steps: int = 1500
    """Of AdamW."""
    imagined: int = 300
    """Pairs of orders that the networks' own values are the mean of."""


def main(settings: Drawing) -> None:
    """Every game, and the record."""
    loaded = load_model(settings.study.model)
    text, tests = texts(loaded, settings.study)
    layers = len(loaded.model.layers)
    orders = drawn_orders(layers, max(settings.pairs), seed=settings.study.seed)
    found = contributions(loaded.model, objective(loaded.model, text.batch, kind="loss", rows=2), orders)
    measured, guess = found.measured, float(np.log(loaded.model.config.vocab_size))
    games: dict[str, Callable[[float], float]] = {
        "loss": lambda loss: loss,
        "loss, at most that of an even guess": lambda loss: min(loss, guess),
        "less one over perplexity": lambda loss: -float(np.exp(-loss)),
    }
    record: dict[str, Any] = {"losses": quantiles(list(measured.values())), "models": len(measured)}
    for name, game in games.items():
        values = known({present: game(loss) for present, loss in measured.items()})
        columns = in_orders(values, orders)
        arms = {f"{pairs} pairs": columns[:, :pairs] for pairs in settings.pairs}
        if name == "loss":
            np.testing.assert_allclose(columns, found.values, rtol=1e-9)
            arms[f"{len(orders)} pairs, less what a network foresees"] = foreseen(columns, values, orders, settings)
        for arm, each in arms.items():
            record[f"{name}, {arm}"] = one = judged(each, loaded, tests, settings.study.counts)
            print(f"{name}, {arm}", json.dumps(one), flush=True)
            about = {"settings": asdict(settings), "versions": versions(), "machine": machine()}
            write_json(FOLDER / "shapley.json", plain(about | {"result": record}))


def quantiles(losses: Sequence[float]) -> dict[str, float]:
    """Least, middle and largest."""
    return {"least": min(losses), "middle": float(np.median(losses)), "largest": max(losses)}


def known(values: Mapping[frozenset[int], float]) -> Values:
    """Values of sets that were measured."""
    return lambda present: np.asarray([values[frozenset(np.flatnonzero(row).tolist())] for row in present])


def sets_of(orders: Sequence[Order]) -> Float[np.ndarray, "N L"]:
    """Those that each order passes through, from no layer to all, then its reverse."""
    places = np.argsort([one for order in orders for one in (order, order[::-1])], axis=1)
    layers = places.shape[1]
    return (places[:, None, :] < np.arange(layers + 1)[None, :, None]).reshape(-1, layers).astype(float)


def in_orders(values: Values, orders: Sequence[Order]) -> Float[np.ndarray, "L P"]:
    """What each layer takes off the value when it joins, mean of each order and its reverse."""
    places = np.argsort([one for order in orders for one in (order, order[::-1])], axis=1)
    at = values(sets_of(orders)).reshape(len(places), -1)
    joined = np.take_along_axis(at[:, :-1] - at[:, 1:], places, axis=1)
    return joined.reshape(len(orders), 2, -1).mean(axis=1).T


def foreseen(
    columns: Float[np.ndarray, "L P"], values: Values, orders: Sequence[Order], settings: Drawing
) -> Float[np.ndarray, "L P"]:
    """Contributions in each pair less those that networks, fitted without it, foresee, plus these networks' values."""
    imagined = drawn_orders(len(columns), settings.imagined, seed=settings.study.seed + 1)
    apart = np.empty_like(columns)
    for p, order in enumerate(orders):
        others = sets_of([*orders[:p], *orders[p + 1 :]])
        _, first = np.unique(others, axis=0, return_index=True)
        foresight = fitted(others[np.sort(first)], values, settings)
        apart[:, p] = columns[:, p] - in_orders(foresight, [order])[:, 0] + in_orders(foresight, imagined).mean(axis=1)
    return apart


def fitted(present: Float[np.ndarray, "N L"], values: Values, settings: Drawing) -> Values:
    """Networks that foresee values of sets, in the mean."""
    x, y = present, values(present)
    middle, spread = y.mean(), y.std()
    target = jnp.asarray((y - middle) / spread)

    def train(seed: int) -> tuple[Any, Any]:
        rngs, layers = nnx.Rngs(seed), x.shape[1]
        network = nnx.Sequential(
            nnx.Linear(layers, settings.width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(settings.width, settings.width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(settings.width, 1, rngs=rngs),
        )
        graph, state = nnx.split(network)
        adam = optax.adamw(optax.cosine_decay_schedule(3e-3, settings.steps), weight_decay=0.01)

        def step(at: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            point, moments = at
            gradient = jax.grad(lambda point: jnp.mean((nnx.merge(graph, point)(x)[:, 0] - target) ** 2))(point)
            change, moments = adam.update(gradient, moments, point)
            return (optax.apply_updates(point, change), moments), None

        run = jax.jit(lambda at: jax.lax.scan(step, at, None, length=settings.steps)[0])
        return graph, run((state, adam.init(state)))[0]

    trained = [train(seed) for seed in range(settings.networks)]

    def foresight(present: Float[np.ndarray, "N L"]) -> Float[np.ndarray, " N"]:
        each = [nnx.merge(graph, point)(jnp.asarray(present, float))[:, 0] for graph, point in trained]
        return np.mean(each, axis=0) * spread + middle

    return foresight


def judged(
    columns: Float[np.ndarray, "L P"], loaded: Loaded, tests: Mapping[str, Text], counts: Sequence[int]
) -> dict[str, Any]:
    """Errors of the values, their spread, and nats a token without the layers of least value."""
    values = columns.mean(axis=1)
    found: dict[str, Any] = {
        "standard_error": float(np.mean(standard_errors(jnp.asarray(columns)))),
        "spread": float(values.std()),
    }
    for count in counts:
        layers = tuple(sorted(np.argsort(values)[:count].tolist()))
        model = drop_layers(loaded.model, layers)
        nats = {name: perplexity(model, test.batch).nll for name, test in tests.items()}
        found[f"{count} layers"] = {"layers": layers, "nll": nats}
    return found


if __name__ == "__main__":
    main(tyro.cli(Drawing, description=__doc__))
