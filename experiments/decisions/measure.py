"""Brackets of every layer's gain after every product, on two texts: what the other two commands of this folder read.

Command:   .venv/bin/python -m experiments.decisions.measure        (about 12 minutes on two cores)
Model:     SmolLM2-135M, 128 tokens of each text, ggn, trust radius 2%, until the gap is 0.1%.
Writes:    brackets_squad.json and brackets_coqa.json beside itself. The damping of a layer is the one at which its full
           run ended, so that its brackets are of one number, and each row is what a run stopped there would have said.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro

from curvjax.curvature import Absolute, ggn_product, host_loop, run_lanczos, run_passes, trust_radius, unit_gradient
from curvjax.curvature.damping import Layer
from curvjax.curvature.gain import Lanczos, gain_of
from curvjax.curvature.layered import LayeredModel, Passes, unit_parameters
from curvjax.data import read_documents, sample
from curvjax.layers import Unit, layer_units, module_path
from curvjax.models import load_model, parameters, weights_hash
from curvjax.models.layered import layered_model
from curvjax.records import digest, machine, versions, write_json
from curvjax.runs.text import TextSettings, packed_text

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What to measure."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    texts: tuple[str, ...] = ("squad", "coqa")
    """Demonstration texts."""
    tokens: int = 128
    """Calibration tokens of each."""
    radius: float = 0.02
    """Trust radius, a share of |theta_k|."""
    gap: float = 1e-3
    """Relative gap at which a run ends."""
    most: int = 150
    """Most products for one layer."""
    seed: int = 0
    """Order of the documents."""


def main(settings: Measure) -> None:
    """One record for each text."""
    loaded = load_model(settings.model)
    model, values = layered_model(loaded.model), parameters(loaded.model)
    for text in settings.texts:
        documents = read_documents(f"demo:{text}")
        documents = sample(documents, len(documents), seed=settings.seed)
        much = TextSettings(tokens=settings.tokens, length=settings.tokens)
        batch = packed_text(documents, loaded, much, source=text).batch
        passes = run_passes(model, [batch])
        units = []
        for unit in layer_units(values):
            shapes = {module_path(path): values[path].shape for path in unit.paths if values[path].ndim == 2}
            units.append(trajectory(model, passes, unit, settings) | {"projections": shapes})
            print(text, unit.name, len(units[-1]["lower"]), flush=True)
        record = {
            "settings": settings.__dict__,
            "text": text,
            "tokens": int(batch.weights.sum()),
            "model": {"name": loaded.name, "weights_sha256": weights_hash(loaded.model)},
            "units": units,
            "versions": versions(),
            "machine": machine(),
        }
        write_json(FOLDER / f"brackets_{text}.json", record | {"sha256": digest(record)})


def trajectory(model: LayeredModel, passes: Passes, unit: Unit, settings: Measure) -> dict[str, Any]:
    """Bounds after 1, 2, ... products, at the damping of the whole run."""
    varied, _ = unit_parameters(model, unit)
    norm = float(jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in varied.values())))
    size = sum(leaf.size for leaf in varied.values())
    policy = trust_radius(settings.radius)(Layer(size, norm, 1.0))
    gradient = unit_gradient(model, passes, unit)
    matvec = ggn_product(model, passes, unit)
    limits = {"rtol": settings.gap, "max_iterations": settings.most, "while_loop": host_loop}
    state: Lanczos = run_lanczos(matvec, gradient, policy=policy, **limits)
    damping = gain_of(state, policy, rtol=settings.gap).damping
    count = int(state.matrix.count)
    steps = [state.matrix._replace(count=jnp.int32(j + 1)) for j in range(count)]
    found = [gain_of(state._replace(matrix=matrix), Absolute(damping), rtol=0.0) for matrix in steps]
    return {
        "name": unit.name,
        "index": unit.index,
        "parameters": size,
        "parameter_norm": norm,
        "gradient_norm2": float(state.matrix.norm) ** 2,
        "damping": float(damping[0]),
        "lower": [float(np.asarray(gain.lower)[0]) for gain in found],
        "upper": [float(np.asarray(gain.upper)[0]) for gain in found],
    }


if __name__ == "__main__":
    main(tyro.cli(Measure, description=__doc__))
