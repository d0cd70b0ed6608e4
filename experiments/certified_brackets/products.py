"""What does it cost a real run to prove |C|? Products with the run's own bound against those with |C| known.

Command:   .venv/bin/python -m experiments.certified_brackets.products     (two cores, about 5 minutes; products.json)
Model:     SmolLM2-135M, 128 tokens of SQuAD, ggn, trust radius 2%, float32.
Expected:  at most a product or two more for a layer.
Control:   the same runs told the largest Ritz value of their own longest run, and a hundredth.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import tyro

from curvjax.curvature import ggn_product, host_loop, run_lanczos, run_passes, trust_radius, unit_gradient, vectors
from curvjax.curvature.damping import Layer
from curvjax.curvature.layered import unit_parameters
from curvjax.curvature.tridiagonal import ritz_values
from curvjax.data import read_documents, sample
from curvjax.layers import layer_units
from curvjax.models import load_model, parameters, weights_hash
from curvjax.models.layered import layered_model
from curvjax.records import machine, versions, write_json
from curvjax.runs.text import TextSettings, packed_text


@dataclass(frozen=True, kw_only=True)
class Products:
    """What is measured."""

    layers: tuple[int, ...] = (29, 27, 24, 20)
    """Decoder layers; products of late ones are cheap."""
    gaps: tuple[float, ...] = (0.01, 0.05)
    """Relative gaps."""
    tokens: int = 128
    """Calibration tokens."""


def main(settings: Products) -> None:
    """All layers and gaps, and the record."""
    loaded = load_model("smollm2-135m")
    model, units = layered_model(loaded.model), layer_units(parameters(loaded.model))
    documents = read_documents("demo:squad")
    documents = sample(documents, len(documents), seed=0)
    text = packed_text(documents, loaded, TextSettings(tokens=settings.tokens, length=settings.tokens), source="demo")
    passes = run_passes(model, [text.batch])
    rows = []
    for k in settings.layers:
        varied, _ = unit_parameters(model, units[k])
        policy = trust_radius(0.02)(Layer(vectors.size(varied), float(jnp.sqrt(vectors.dot(varied, varied))), 0.0))
        product, gradient = ggn_product(model, passes, units[k]), unit_gradient(model, passes, units[k])
        run = partial(run_lanczos, product, gradient, policy=policy, max_iterations=100, while_loop=host_loop)
        for gap in sorted(settings.gaps):
            proved = run(rtol=gap)
            largest = float(ritz_values(proved.matrix)[-1])
            told = run(rtol=gap, norm_bound=1.01 * largest)
            row = {
                "layer": k,
                "gap": gap,
                "products": {"proved": int(proved.matrix.count), "told": int(told.matrix.count)},
                "bound_over_largest_ritz": float(proved.matrix.largest) / largest,
            }
            rows.append(row)
            print(row, flush=True)
    record = {"settings": asdict(settings), "model": weights_hash(loaded.model), "rows": rows}
    made = {"versions": versions(), "machine": machine()}
    write_json(Path(__file__).parent / "products.json", record | made)


if __name__ == "__main__":
    main(tyro.cli(Products))
