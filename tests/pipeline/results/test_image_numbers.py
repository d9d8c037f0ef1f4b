"""The numbers that set an image apart, against images and embeddings that are known."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.image_numbers import image_numbers, isolation
from pipeline.results.sampling import RowLocation
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run


def test_dark_bright_plain_and_wide_images_have_the_numbers_of_what_they_are():
    board = np.indices((32, 32)).sum(0) % 2 * 255
    grids = [np.full((32, 32), 10), np.full((32, 32), 240), board]
    luma = [np.uint8(grid).tobytes() for grid in grids]
    pool = pa.table({"original_width": [40, 10, None, 0], "original_height": [10, 40, 5, 0]})
    tables = {"clean": pa.table({"image_luma": pa.array([*luma, None], pa.binary())})}
    found = image_numbers(pool, tables)
    np.testing.assert_allclose(found["aspect"], [4, 0.25, np.nan, np.nan])
    np.testing.assert_allclose(found["brightness"], [10, 240, 127.5, np.nan])
    assert found["sharpness"][0] == found["sharpness"][1] == 0 < found["sharpness"][2]
    assert np.isnan(found["sharpness"][3])
    assert image_numbers(pool, {}).keys() == {"aspect"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run whose stage embed has measured nothing yet."""
    root = tmp_path_factory.mktemp("run")
    stages = {"download": {"source": "x"}, "embed": {"model": "nowhere/at-all"}}
    made = Manifest.parse({"name": "m", "run": str(root), "stages": stages})
    measurement = {"measurement": {"embed": {"weights": "0" * 16}}}
    return Results(Run(str(root)), Plan(made, measurement))


VECTOR = st.none() | st.lists(st.integers(-4, 4), min_size=3, max_size=3).filter(any)


@given(st.lists(st.lists(VECTOR, max_size=6), min_size=1, max_size=3))
def test_an_image_is_as_far_from_the_others_as_from_the_nearest_of_them(results, shards):
    folder = results.plan.folder("embed")
    known = {}
    for number, vectors in enumerate(shards):
        halves = [None if v is None else list(np.array(v, np.float16)) for v in vectors]
        table = pa.table({"image_embedding": pa.array(halves, pa.list_(pa.float16()))})
        results.run.write_table(table, *folder, f"{number:05d}.parquet")
        known |= {RowLocation(f"{number:05d}", row): v for row, v in enumerate(vectors)}
    found = isolation(results, known)
    units = {at: np.array(v) / np.linalg.norm(v) for at, v in known.items() if v is not None}
    expected = {
        at: min((1 - unit @ other for there, other in units.items() if there != at), default=None)
        for at, unit in units.items()
    }
    assert found == pytest.approx({k: v for k, v in expected.items() if v is not None}, abs=1e-5)


def test_a_run_without_embeddings_has_no_distances(tmp_path):
    made = Manifest.parse(
        {"name": "m", "run": str(tmp_path), "stages": {"download": {"source": "x"}}}
    )
    results = Results(Run(str(tmp_path)), Plan(made))
    assert isolation(results, [RowLocation("00000", 0), RowLocation("00000", 1)]) == {}
