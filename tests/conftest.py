import os
import signal

# Before any import of torch: tests run side by side, and each takes one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers would give way to all else on a busy machine, and the tests that wait for them last.
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest
from hypothesis import settings

settings.register_profile("capfilt", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("capfilt")

# A background job of a shell ignores the one, nohup the other, and so would the commands that tests
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SLOW_FIXTURES = {"browser", "plugin", "ray_here", "realweb", "tls_server"}
"""Fixtures that start Ray, a browser or another process; tests that use them are `slow`."""

FIRST = (
    "test_distributed",
    "test_object_storage",
    "test_faults",
    "test_disk_faults",
    "test_training_faults",
    "test_docs",
    "test_cluster",
    "test_rounds",
    "test_runner",
    "test_served",
    "test_recipes",
    "test_plugin",
)
"""Files that take longest; they run first, so that no process is left with one of them alone."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a slow fixture, and put the files that take longest first."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: (order.get(item.path.stem, len(FIRST)), item.path not in slow))


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
def language(tmp_path_factory):
    """The folder of a spaCy pipeline that reads the drawn world's captions."""
    import functools

    from helpers.shared import made_once

    from pipeline.demo.language import train_language

    make = functools.partial(train_language, num_sentences=800)
    return str(made_once(tmp_path_factory, "language", make))


@pytest.fixture(scope="session")
def realweb(tmp_path_factory):
    """The folder of the real web and the port it is served at."""
    from helpers import web

    out = tmp_path_factory.mktemp("realweb")
    port = web.free_port()
    web.build(out, f"http://127.0.0.1:{port}")
    with web.served(out / "site", port):
        yield out, port
