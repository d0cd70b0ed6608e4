import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.artefacts import GAINS_SCHEMA, read_record
from curvjax.models import load_model, weights_hash
from curvjax.runs import score as scoring
from curvjax.runs.progress import silent
from tests.runs.tiny import SETTINGS, save_tiny_model, texts


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
def scored(loaded, tmp_path_factory):
    """Directory of an uninterrupted `score` of `texts(8)`."""
    directory = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
        scoring.score(loaded, texts(8), SETTINGS, directory, source="texts", progress=silent)
    return directory


@pytest.fixture
def gains(scored):
    return read_record(scored / "gains.json", schema=GAINS_SCHEMA)


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


@pytest.fixture
def shallow_gains(gains, shallow):
    """The first two layers' gains, as if they were the shallow model's."""
    model = gains["model"] | {"name": "shallow", "weights_sha256": weights_hash(shallow.model), "layers": 2}
    return gains | {"model": model, "units": gains["units"][:2]}
