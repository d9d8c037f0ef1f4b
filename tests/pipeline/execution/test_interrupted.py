"""Commands that are ended from outside, and a run that goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import termios

import pytest
import yaml
from helpers.faulty_runs import (
    carry_out,
    children,
    content,
    digests,
    manifest,
    start,
    wait_for,
)

from pipeline.cli.main import main
from pipeline.storage.lock import is_alive
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow


def test_a_second_command_is_told_who_holds_the_run(photos, tmp_path, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, tmp_path / "r"), sort_keys=False))
    with Run(str(tmp_path / "r")).lock():
        assert main(["run", str(path), "--quiet"]) == 1
    assert f"is in use by process {os.getpid()} on" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_batch_system_end_a_run_that_goes_on(photos, tmp_path, end, status):
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    process = start(path, stdout=subprocess.PIPE, start_new_session=True)
    wait_for(process, folder, "pool/0*.parquet")
    raylet = children(process.pid)["raylet"]
    os.killpg(process.pid, end)  # as a terminal and Slurm do: to all of its processes
    out, error = process.communicate(timeout=600)
    assert process.returncode == status and error == "stopped; the same command resumes\n"
    assert "Ctrl-C again stops at once" in out
    assert not (folder / "run.lock").exists() and not is_alive(raylet)


def test_a_terminal_that_closes_ends_a_run_that_goes_on(photos, tmp_path):
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    terminal, inner = pty.openpty()

    def enter():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start(path, stdin=inner, stdout=inner, stderr=inner, preexec_fn=enter)
    os.close(inner)
    wait_for(process, folder, "pool/0*.parquet")
    raylet = children(process.pid)["raylet"]
    os.close(terminal)
    assert process.wait(600) == 129
    assert not (folder / "run.lock").exists() and not is_alive(raylet)


def test_the_death_of_ray_leaves_a_run_that_goes_on(done, photos, tmp_path):
    whole, _ = done
    folder, path = tmp_path / "r", tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content(photos, folder), sort_keys=False))
    quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    process = start(path, env={**os.environ, **quick}, stdout=subprocess.DEVNULL)
    wait_for(process, folder, "annotations/*/0*.parquet")
    os.kill(children(process.pid)["raylet"], signal.SIGKILL)
    _, error = process.communicate(timeout=600)
    if process.returncode:  # workers go on for seconds, and may have done all that was left
        assert process.returncode == 1 and "Ray " in error and "same command" in error
    carry_out(manifest(photos, folder))
    assert digests(Run(str(folder))) == digests(whole)
