import ast
import pickle
from pathlib import Path

import pytest

from models import errors

STATUSES = {
    "CapfiltError": 1,
    "InputError": 2,
    "ManifestError": 2,
    "PluginError": 2,
    "YamlError": 2,
    "PoolMismatchError": 2,
    "DamagedError": 3,
    "ChecksumError": 3,
    "UnreadableError": 1,
    "IncompleteError": 1,
    "RunBusyError": 1,
    "StageError": 1,
    "ClusterError": 1,
    "WorkerPoolError": 1,
    "ShardError": 1,
    "StageUnavailableError": 1,
    "BrokenStageError": 1,
    "ContractError": 1,
    "ConservationError": 1,
}


def test_every_error_has_the_status_that_the_docs_tell():
    classes = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}
    assert {name: kind.exit_status for name, kind in classes.items()} == STATUSES
    for name, kind in classes.items():
        assert issubclass(kind, errors.CapfiltError)
        assert errors.exit_status_of(kind("x")) == STATUSES[name]
        assert name in errors.__doc__.split()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError("x"), 2),
        (PermissionError("x"), 1),
        (RuntimeError("x"), 1),
        (MemoryError(), 1),
        (KeyError("x"), None),
        (AssertionError(), None),
        (TypeError("x"), None),
    ],
)
def test_errors_of_python_are_wrong_input_failures_or_bugs(error, status):
    assert errors.exit_status_of(error) == status


def test_a_failed_stage_ends_as_its_cause_does():
    assert errors.StageError("x", errors.DamagedError("y")).exit_status == 3
    assert errors.StageError("x", errors.InputError("y")).exit_status == 2
    for cause in (None, KeyError("y"), errors.ShardError("y")):
        assert errors.StageError("x", cause).exit_status == 1


def test_a_damaged_file_keeps_what_is_known_of_it_when_a_worker_sends_it():
    error = errors.DamagedError("a/b: damaged", ("a", "b"), True)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.parts, copy.is_derived) == ("a/b: damaged", ("a", "b"), True)


OF_ROWS = {"CostlyError", "FetchError", "ImageError", "SchemeError", "_StoppedError"}
"""Errors that become the reason of a row."""

OF_REQUESTS = {"RequestError"}
"""Errors that become the answer to a request of a browser."""


OF_SERVERS = {"ServerBusyError"}
"""Errors after which a server is asked again."""


def test_errors_that_end_a_command_are_defined_in_one_module():
    root = Path(errors.__file__).parents[1]
    defined = {
        node.name
        for package in ("models", "stages", "pipeline")
        for path in (root / package).rglob("*.py")
        if path != Path(errors.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    assert defined == OF_ROWS | OF_REQUESTS | OF_SERVERS
