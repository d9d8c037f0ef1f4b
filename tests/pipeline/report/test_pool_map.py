import numpy as np

from pipeline.report.pool_map import principal


def test_the_plane_has_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 2.0, 0.1, 0.1])
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    points = (rng.normal(size=(500, 4)) * spread) @ turn
    plane, shares = principal(points.astype(np.float16))
    expected = (points - points.mean(axis=0)) @ turn.T
    for axis in (0, 1):
        assert abs(np.corrcoef(plane[:, axis], expected[:, axis])[0, 1]) > 0.98
        assert plane[np.abs(plane[:, axis]).argmax(), axis] > 0
    assert abs(shares[0] - 9 / 13) < 0.05 and abs(shares[1] - 4 / 13) < 0.05


def test_equal_embeddings_lie_in_one_place():
    plane, shares = principal(np.ones((3, 4), np.float16))
    assert not plane.any() and shares == (0.0, 0.0)
