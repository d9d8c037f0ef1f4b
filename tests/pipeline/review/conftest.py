import pytest
from helpers.reviews import make_run


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """A run that nobody changes."""
    return make_run(tmp_path_factory.mktemp("fresh") / "run")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")
