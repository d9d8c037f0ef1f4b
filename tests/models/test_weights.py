from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import numpy as np
import pytest
from helpers.blips import WORDS, save, tokenizer_of
from safetensors.numpy import save_file
from transformers import BlipForConditionalGeneration

from models.errors import DamagedError
from models.weights import check_files, device_of, folder_of, pinned, revision_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captioner")
    save(path, BlipForConditionalGeneration, tokenizer_of(WORDS.split()))
    return path


def test_a_folder_is_known_by_its_contents_not_its_name(folder: Path, tmp_path: Path) -> None:
    revision = revision_of(str(folder))
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert revision_of(str(copy)) == revision and len(revision) == 16
    (copy / "README.md").write_text("a note")
    assert revision_of(str(copy)) == revision
    assert pinned(str(copy)) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_any_change_of_weights_or_settings_is_another_revision(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = revision_of(str(copy))
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(bytes(content))
    assert revision_of(str(copy)) != before


def test_a_commit_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert revision_of("nobody/nothing", COMMIT) == COMMIT == pinned("nobody/nothing", COMMIT)


def test_a_hub_name_is_the_commit_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--some--blip"
    for path, text in (("refs/main", COMMIT), (f"snapshots/{COMMIT}/config.json", "{}")):
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(text)
    assert revision_of("some/blip") == COMMIT == pinned("some/blip")
    with pytest.raises(FileNotFoundError, match="hf download some/blip"):
        revision_of("some/blip", "v2")
    with pytest.raises(FileNotFoundError, match="hf download some/other"):
        revision_of("some/other")


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/none", "s3://bucket/model", ""])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError)):
        revision_of(name)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        revision_of(str(tmp_path))


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(ValueError, match="leave revision unset"):
        revision_of(str(folder), "main")


def test_a_named_device_is_itself() -> None:
    assert [device_of(name) for name in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    assert device_of("auto") in ("cpu", "cuda")


def test_a_url_whose_protocol_ends_like_that_of_files_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/model.safetensors", b"weights")
    try:
        folder = Path(folder_of("filecache::memory://far"))
    finally:
        memory.rm("/far", recursive=True)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder_of(f"file://{folder}") == str(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"text_config": {"depths": [2, 10**6]}}, "depths 1000000"),
        ({"text_config": {"hidden_size": 10**12}}, "hidden_size 1000000000000"),
        ({"vocab_size": 2**31}, "vocab_size 2147483648"),
    ],
)
def test_a_config_that_asks_for_far_more_than_its_weights_is_refused(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    save_file({"a": np.zeros((4, 8), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "rope_theta": 10**9}))
    check_files(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamagedError, match=rf"config\.json says {named}, but the weights have 1 "):
        check_files(str(tmp_path))


def test_a_config_without_end_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 10**6)
    with pytest.raises(DamagedError, match=r"config\.json is damaged"):
        check_files(str(tmp_path))
