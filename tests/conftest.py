import signal

import pytest
from hypothesis import settings

settings.register_profile("capfilt", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("capfilt")

# A background job of a shell ignores the one, nohup the other, and so would the commands that tests
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def ray_here():
    """One Ray for all tests that need it."""
    import ray

    from pipeline.execution.cluster import Cluster

    cluster = Cluster(workers=2)
    cluster.start()
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="session")
def realweb(tmp_path_factory):
    """The folder of the real web and the port it is served at."""
    from helpers import web

    out = tmp_path_factory.mktemp("realweb")
    port = web.free_port()
    web.build(out, f"http://127.0.0.1:{port}")
    with web.served(out / "site", port):
        yield out, port
