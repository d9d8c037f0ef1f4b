"""The folder of an unfinished training: here and in object storage."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.storage.staging import StagingDir


@pytest.fixture(params=["local", "memory"])
def staging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StagingDir]:
    memory = fsspec.filesystem("memory")
    local = request.param == "local"
    made = StagingDir(str(tmp_path / "model") if local else "memory://runs/model")
    yield made
    made.close()
    memory.store.clear()


def write(staging: StagingDir, **files: str) -> None:
    """Write files of the unfinished training, and keep them."""
    for name, content in files.items():
        path = staging.partial / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    staging.keep(*(name for name in files if "__" not in name))


def read(staging: StagingDir) -> dict[str, str]:
    """The files of the unfinished training."""
    found = (path for path in staging.partial.rglob("*") if path.is_file())
    return {path.relative_to(staging.partial).as_posix(): path.read_text() for path in found}


def test_a_training_is_set_aside_and_taken_back(staging: StagingDir) -> None:
    write(staging, checkpoint="one", log="1")
    staging.set_aside("first")
    assert staging.beside("first").endswith("model.first.partial")
    staging.fetch("checkpoint", "log")
    assert read(staging) == {}
    assert not staging.take_back("other")
    write(staging, checkpoint="two", log="2")
    staging.set_aside("second")
    for name, content in (("first", "one"), ("second", "two")):
        assert staging.take_back(name)
        staging.fetch("checkpoint", "log")
        assert read(staging) == {
            "checkpoint": content,
            "log": content.replace("one", "1").replace("two", "2"),
        }
        staging.set_aside(name)


def test_a_folder_is_kept_in_the_place_of_its_former(staging: StagingDir) -> None:
    write(staging, best__config="1", best__old="gone")
    staging.keep_folder("best")
    (staging.partial / "best/old").unlink()
    write(staging, best__config="2", best__part__weights="w")
    staging.keep_folder("best")
    staging.fetch_folder("best")
    assert read(staging) == {"best/config": "2", "best/part/weights": "w"}
    staging.fetch_folder("none")


def test_a_file_is_renamed_over_another_in_the_storage(staging: StagingDir) -> None:
    write(staging, checkpoint="2", previous="1")
    staging.rename("checkpoint", "previous")
    staging.rename("none", "previous")
    staging.fetch("checkpoint", "previous")
    # A local training renames its files itself.
    is_local = "://" not in staging.out
    assert read(staging) == (
        {"checkpoint": "2", "previous": "1"} if is_local else {"previous": "2"}
    )
