from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.models import load_model
from curvjax.records import Scores
from curvjax.runs import score as scoring
from tests.runs.stand_ins import stand_in_gains
from tests.runs.tiny import SETTINGS, rows, save_tiny_model


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(model_directory):
    return load_model(model_directory)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """The same architecture with other weights."""
    return load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "stranger", seed=2))


@pytest.fixture(autouse=True)
def quick_gradient(monkeypatch):
    """The yardstick of costs compiles the whole model; a second stands for it."""
    monkeypatch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)


@pytest.fixture(scope="session")
def text(loaded):
    return rows(loaded)


@pytest.fixture(scope="session")
def scored(loaded, text, tmp_path_factory):
    """Directory of an uninterrupted `score`."""
    directory = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        scoring.score(loaded, text, settings=SETTINGS, directory=directory)
    return directory


@pytest.fixture(scope="session")
def gains(scored):
    return Scores.load(scored / "gains.json")


@pytest.fixture(scope="session")
def modules(gains):
    """The layers' gains as if each projection of layers 0 to 11 had its own, of unequal costs."""
    units = tuple(
        replace(
            unit,
            name=path,
            projections={path: shape},
            **{end: (k + 1) * getattr(unit, end) for end in ("value", "lower", "upper")},
        )
        for unit in gains.units
        for k, (path, shape) in enumerate(unit.projections.items())
    )
    return replace(gains, granularity="module", units=units)


@pytest.fixture(scope="session")
def logits():
    """Function from a model to its logits on fixed tokens."""
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 60)

    def of(model):
        positions = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32)[None, :], (2, 8))
        x = model.embed(tokens, positions)
        for block in model.layers:
            x = block(x, positions, jnp.ones((2, 8), jnp.int32))
        return np.asarray(model.readout(x))

    return of


@pytest.fixture(scope="session")
def shallow(tmp_path_factory):
    """Two layers of the same sizes, where compiling the whole model costs."""
    return load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "shallow", layers=2))


@pytest.fixture(scope="session")
def shallow_gains(gains, shallow):
    """The first two layers' gains, as if they were the shallow model's."""
    return replace(gains, units=gains.units[:2], origin=replace(gains.origin, model=shallow.origin))


@pytest.fixture
def never(monkeypatch):
    """No product may be made."""
    for name in ("run_passes", "CURVATURES", "full_gradient_seconds"):
        monkeypatch.setattr(scoring, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


@pytest.fixture
def measured(monkeypatch):
    """Names of the units that are really measured."""
    names, original = [], scoring.CURVATURES["ggn"]

    def record(model, passes, units, **settings):
        for found in original(model, passes, units, **settings):
            names.append(found.unit.name)
            yield found

    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": record})
    return names


@pytest.fixture
def stand_ins(monkeypatch):
    """Gains without curvature, for what does not depend on their values."""
    monkeypatch.setattr(scoring, "run_passes", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": stand_in_gains})
