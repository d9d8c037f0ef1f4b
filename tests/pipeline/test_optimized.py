"""Guards that hold where Python strips every assert."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "tests",
    [
        ("results/test_conservation.py",),
        (
            "results/test_verify.py",
            *("-k", "finished_run or rows_that_are_called or missing or hostile"),
        ),
    ],
)
def test_rows_are_conserved_and_faults_are_found_without_asserts(tests):
    name, *chosen = tests
    # pytest makes the asserts of tests into exceptions of its own, which -O leaves.
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(HERE / name), *chosen],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
    assert "failed" not in done.stdout
