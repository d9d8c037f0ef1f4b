from __future__ import annotations

import pytest
from helpers import fakes
from helpers.faulty_runs import (
    carry_out,
    manifest,
)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return fakes.photo_folder(tmp_path_factory.mktemp("photos"), 20)


@pytest.fixture(scope="session")
def done(photos, tmp_path_factory, ray_here):
    return carry_out(manifest(photos, tmp_path_factory.mktemp("run") / "r"))
