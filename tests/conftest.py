import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import fakes`


@pytest.fixture(scope="session")
def ray_here():
    """One Ray for all tests that need it."""
    import ray

    from pipeline.cluster import Cluster

    cluster = Cluster(workers=2)
    cluster.start()
    yield cluster
    ray.shutdown()
