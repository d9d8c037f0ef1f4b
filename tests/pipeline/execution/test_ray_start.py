"""Ray that does not start: one retry, one line, and a run that has not changed."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml
from helpers import fakes
from helpers.faulty_runs import small_disk

from models.errors import ClusterError
from pipeline.cli.main import main
from pipeline.execution import ray_start
from pipeline.execution.cluster import Cluster
from pipeline.storage.run import Run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def ray_init(monkeypatch):
    """Replaces `ray.init`, which raises the errors of a list, one a call; tells its arguments."""
    calls, errors = [], []

    def start(**options):
        from ray._private import node

        begun = node.time.monotonic()
        time.sleep(0.02)
        calls.append({**options, "waited": node.time.monotonic() - begun})
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls, errors


LATE = "The current node timed out during startup. This could happen because"


def test_ray_is_started_once_more_with_a_longer_time(ray_init, monkeypatch):
    calls, errors = ray_init
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    errors.append(Exception(LATE))
    cluster = Cluster(workers=1)
    cluster.start()
    first, second = calls
    assert first["_temp_dir"] == second["_temp_dir"] and os.path.isdir(first["_temp_dir"])
    assert first["waited"] >= 0.02 > second["waited"]
    cluster.stop()
    assert not os.path.exists(first["_temp_dir"])


def test_what_keeps_ray_from_starting_is_told_in_one_line(ray_init, monkeypatch, tmp_path):
    calls, errors = ray_init
    errors += [Exception(LATE), RuntimeError("Failed to start GCS.\nTraceback: ...")]
    with pytest.raises(ClusterError, match="RuntimeError: Failed to start GCS") as told:
        Cluster(workers=1).start()
    assert "\n" not in str(told.value) and len(calls) == 2
    for word in ("RAY_TMPDIR", "RAY_AUTH_MODE", "Nothing of the run has changed"):
        assert word in str(told.value)
    monkeypatch.setenv("RAY_TMPDIR", "/none")
    with pytest.raises(ClusterError, match=r"/none: no such file or directory\. Set RAY_TMPDIR"):
        Cluster(workers=1).start()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))
    with pytest.raises(ClusterError, match="its path is too long for a socket"):
        Cluster(workers=1).start()
    with small_disk(tmp_path / "disk", "64k"):
        monkeypatch.setattr(ray_start, "LONGEST", 200)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "disk"))
        with pytest.raises(ClusterError, match=r"/disk: no space left on device\. Set RAY_TMPDIR"):
            Cluster(workers=1).start()
        assert not list((tmp_path / "disk").iterdir()) and len(calls) == 2
    errors += [ConnectionError("no such cluster")]
    with pytest.raises(
        ClusterError, match=r"127\.0\.0\.1:1 cannot be reached: ConnectionError: no"
    ):
        Cluster("127.0.0.1:1").start()


def test_ray_starts_without_what_serves_a_cluster_only(ray_here):
    from ray._private import worker

    assert set(worker._global_node.all_processes) - {"reaper"} == {"gcs_server", "raylet"}


@pytest.mark.slow
def test_drivers_and_workers_import_no_library_that_they_may_not_need():
    code = "import sys, pipeline.execution.session; print({'scipy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
def test_folders_of_dead_commands_are_removed_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setenv("RAY_TMPDIR", str(Path("/tmp") / f"t{os.getpid()}"))
    place = Path(os.environ["RAY_TMPDIR"])
    place.mkdir()
    try:
        for name in (f"capfilt-{dead.pid}-a", f"capfilt-{os.getppid()}-b", "capfilt-c", "other"):
            (place / name / "session").mkdir(parents=True)
        made = Path(ray_start.make_folder())
        assert made.parent == place and made.stat().st_mode & 0o777 == 0o700
        left = sorted(path.name for path in place.iterdir())
        assert left == sorted([made.name, f"capfilt-{os.getppid()}-b", "capfilt-c", "other"])
    finally:
        ray_start.remove_folder(str(place))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with an export, and its manifest."""
    folder = tmp_path_factory.mktemp("finished")
    fakes.photo_folder(folder / "photos", 8)
    content = {
        "name": "finished",
        "run": str(folder / "run"),
        "stages": {
            "download": {"source": str(folder / "photos"), "image_size": 32, "shard_size": 4},
            "clean": {"min_side": 16},
            "dedup": {},
            "export": {},
        },
        "exports": {"urls": {"format": "urls"}},
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path, Run(content["run"])


def test_a_run_whose_ray_does_not_start_has_not_changed(
    finished, ray_here, ray_init, capsys, tmp_path
):
    path, run = finished
    _, errors = ray_init
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: True)
        assert main(["run", str(path), "--workers", "2", "--quiet"]) == 0
    before = run.digests()
    capsys.readouterr()
    for command in (
        ["run", "--set", "clean.min_side=33"],  # another export
        ["run", "--set", "dedup.max_hamming=5"],  # another summary
        ["export", "--set", "export.shard_size=2"],
        ["run", "--set", "export.shard_size=3", "--until", "export"],
    ):
        errors[:] = [Exception(LATE)] * 2
        status = main([command[0], str(path), *command[1:], "--quiet"])
        told = capsys.readouterr().err
        assert status == 1 and told.count("\n") == 1 and "Ray does not start" in told
        assert run.digests() == before


@pytest.mark.slow
def test_a_command_leaves_nothing_in_its_home_or_temporary_folder(finished, tmp_path):
    path, _ = finished
    place = Path("/tmp") / f"h{os.getpid()}"
    (place / "tmp").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(place / "none"), "TMPDIR": str(place / "tmp")}
    try:
        command = ["run", str(path), "--workers", "1", "--run", str(tmp_path / "run")]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *command, "--until", "export"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert sorted(place.rglob("*")) == [place / "tmp"]
    finally:
        ray_start.remove_folder(str(place))


MACHINES = {
    "read-only root and /dev/shm": "mount -o remount,bind,ro /; mount -t tmpfs tmpfs {place}; "
    "mount -t tmpfs -o ro tmpfs /dev/shm",
    "small /dev/shm": "mount -t tmpfs -o size=64k tmpfs /dev/shm",
    "no /dev/shm": "mkdir {place}/d; mount -t tmpfs tmpfs {place}/d; "
    "for name in null zero full random urandom; "
    "do touch {place}/d/$name; mount --bind /dev/$name {place}/d/$name; done; "
    "mount --move {place}/d /dev; rmdir {place}/d",
}
"""What a machine has not, and how to make it so in a mount namespace."""


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
@pytest.mark.parametrize("machine", MACHINES)
def test_a_run_needs_no_home_no_root_to_write_to_and_no_shared_memory(finished, machine):
    """HOME is a folder that is not there and cannot be made."""
    path, _ = finished
    place = Path("/tmp") / f"m{os.getpid()}"
    (place / "tmp").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": "/proc/nobody", "TMPDIR": str(place / "tmp")}
    run, capfilt = place / "run", f"{sys.executable} -m pipeline.cli"
    steps = [
        "mount --bind / /",
        MACHINES[machine].format(place=place),
        f"mkdir -p {place}/tmp",
        f"{capfilt} run {path} --workers 1 --run {run} --until export && {capfilt} verify {run}",
    ]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", "; ".join(steps)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        if "mount: " in done.stderr:
            pytest.skip(f"no mount namespace: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr + done.stdout
    finally:
        ray_start.remove_folder(str(place))
