import pytest

from tests.report import values


@pytest.fixture(scope="session")
def whole():
    """A whole run of 12 layers."""
    return values.run_of(12)


@pytest.fixture
def run_dir(tmp_path):
    """`run_dir(records) -> folder` with those records written."""
    return lambda records: values.write(tmp_path / "run", records)
