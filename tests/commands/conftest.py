import pytest

from curvjax import cli
from curvjax.models import load_model
from curvjax.runs import adapt as adapting
from curvjax.runs import score as scoring
from tests.runs.stand_ins import stand_in_fit, stand_in_gains
from tests.runs.tiny import save_tiny_model, texts, write_texts


@pytest.fixture
def command(capsys):
    """Function that runs the command in this process; its exit status (0 where it returns), output and errors."""

    def of(*words):
        status = 0
        try:
            cli.main([*map(str, words)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return of


@pytest.fixture
def stand_ins(monkeypatch):
    """Gains and adapters without curvature or training."""
    monkeypatch.setattr(scoring, "full_gradient_seconds", lambda *_: 1.0)
    monkeypatch.setattr(scoring, "run_passes", lambda *_, **__: None)
    monkeypatch.setattr(scoring, "CURVATURES", {"ggn": stand_in_gains})
    monkeypatch.setattr(adapting, "fit", stand_in_fit)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shallow(tmp_path_factory):
    """Two layers, where every rebuilt model is compiled anew."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "shallow", layers=2)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("data") / "texts", texts(8))


@pytest.fixture(scope="session")
def origin(model):
    return load_model(model).origin
