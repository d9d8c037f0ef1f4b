"""The hold on a run, against real processes."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import RunBusyError
from pipeline.storage import lock
from pipeline.storage.lock import lock_local

HOLDER = """
import sys, time
from pipeline.storage.lock import lock_local
with lock_local(sys.argv[1], "the run", beat=0.05):
    print("held", flush=True)
    time.sleep(60)
"""


LINKLESS = """
import errno, os
def refuse(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
os.link = refuse
"""


@pytest.fixture
def linkless(monkeypatch):
    """A file system without hard links, as exFAT is, for this process and for `holder`."""

    def refuse(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(sys.modules[__name__], "HOLDER", LINKLESS + HOLDER)


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def links(request):
    if not request.param:
        request.getfixturevalue("linkless")


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock")],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_live_process_is_told_of_at_once_and_left_alone(tmp_path, links, holder):
    path = tmp_path / "run.lock"
    with (
        pytest.raises(
            RunBusyError, match=rf"the run is in use by process {holder.pid} on .* since"
        ),
        lock_local(str(path), "the run"),
    ):
        pytest.fail("two hold it")
    assert json.loads(path.read_text())["pid"] == holder.pid


def test_a_process_holds_once(tmp_path, links):
    path = str(tmp_path / "run.lock")
    with lock_local(path, "it"), pytest.raises(RunBusyError), lock_local(path, "it"):
        pass
    with lock_local(path, "it"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_only_a_dead_process_is_followed(tmp_path, holder, end):
    holder.send_signal(end)
    if end == signal.SIGSTOP:  # it may go on at any time, and it can be asked
        with pytest.raises(RunBusyError), lock_local(str(tmp_path / "run.lock"), "it"):
            pass
        return
    holder.wait()
    with lock_local(str(tmp_path / "run.lock"), "it"):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_dead_process_that_nobody_waits_for_is_followed(tmp_path, holder):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    with lock_local(str(tmp_path / "run.lock"), "it"):
        pass


@pytest.mark.slow
def test_a_process_that_has_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path, holder):
    path = tmp_path / "run.lock"
    holder.kill()
    holder.wait()
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "pid": os.getpid()}))
    with lock_local(str(path), "it"):
        pass


@pytest.mark.slow
def test_a_holder_elsewhere_is_alive_while_its_file_changes(tmp_path, monkeypatch, holder):
    path = tmp_path / "run.lock"
    monkeypatch.setattr(lock, "_machine", lambda: "another")
    monkeypatch.setattr(time, "time", lambda: -1e9)  # no clock is asked
    with pytest.raises(RunBusyError, match="in use"), lock_local(str(path), "it", lease=600.0):
        pass


@pytest.mark.slow
def test_a_holder_elsewhere_whose_file_stands_still_is_followed(tmp_path, monkeypatch, holder):
    path = tmp_path / "run.lock"
    holder.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lock, "_machine", lambda: "another")
    with lock_local(str(path), "it", lease=0.5):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        holder.send_signal(signal.SIGCONT)  # it finds out, stops, and leaves the file alone
        assert holder.wait(600) != 0
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def follow(path):
    """Take over a file as another process does."""
    other = path.with_name("other")
    other.write_text(json.dumps({"pid": 1, "token": "other"}))
    other.replace(path)


@pytest.mark.parametrize("is_main", [True, False])
def test_a_holder_that_is_followed_after_its_last_beat_is_told_as_it_ends(tmp_path, is_main):
    path = tmp_path / "run.lock"

    def work():
        with (
            pytest.raises(RunBusyError, match="taken over by another process"),
            lock_local(str(path), "it", beat=600),
        ):
            follow(path)
        return json.loads(path.read_text())["token"]

    if is_main:
        assert work() == "other"
        return
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == "other"


def test_a_holder_that_goes_on_after_its_interruption_is_told_as_it_ends(tmp_path):
    path = tmp_path / "run.lock"
    with (
        pytest.raises(RunBusyError, match="taken over by another process"),
        lock_local(str(path), "it", beat=0.05),
    ):
        follow(path)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
    assert json.loads(path.read_text())["token"] == "other"


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"pid": "x"', b"\xff\xfe"])
def test_a_file_that_says_nothing_is_followed_after_a_lease(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content)
    with lock_local(str(tmp_path / "run.lock"), "it", lease=0.2):
        pass


@pytest.mark.slow
def test_of_several_that_follow_a_dead_one_one_holds(tmp_path, links, holder):
    path = str(tmp_path / "run.lock")
    holder.kill()
    holder.wait()
    inside, refused, most = [], [], []

    def take():
        try:
            with lock_local(path, "it"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.2)
                inside.pop()
        except RunBusyError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) + len(refused) == 8
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_file_that_is_still_being_written_is_of_a_live_holder(tmp_path, linkless, holder):
    path = tmp_path / "run.lock"
    content = path.read_bytes()
    os.kill(holder.pid, signal.SIGSTOP)
    path.write_bytes(b"")

    def write():
        time.sleep(0.3)
        path.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    with (
        pytest.raises(RunBusyError, match=rf"in use by process {holder.pid} on"),
        lock_local(str(path), "it", lease=600.0),
    ):
        pass
    writer.join()
    assert path.read_bytes() == content


def test_a_file_that_was_judged_is_removed_and_not_the_next_of_its_name(tmp_path):
    path = tmp_path / "run.lock"
    path.write_bytes(b"")
    with path.open("rb") as seen:
        path.unlink()
        path.write_bytes(b"")  # of one that was quicker, and is writing it
        lock._remove(str(path), {}, seen)
    assert path.exists()
    with path.open("rb") as seen:
        lock._remove(str(path), {}, seen)
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_made_is_named_and_not_the_one_beside_it(
    tmp_path, monkeypatch, number
):
    def refuse(source, target):
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError) as told, lock_local(str(tmp_path / "run.lock"), "it"):
        pass
    assert (told.value.errno, told.value.filename) == (number, str(tmp_path / "run.lock"))
    assert os.listdir(tmp_path) == []
