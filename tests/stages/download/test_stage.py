"""Download: what it is told, what it asks for, and what becomes of each row."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.downloads import Web, encode, listed, measured, photo, stage
from pydantic import TypeAdapter, ValidationError

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.sources import Source


def test_a_failed_download_is_a_row_with_its_reason(web: Web) -> None:
    web.files.update({"empty": b"", "large": b"x" * 1001})
    urls = [web.url("empty"), web.url("large"), web.url("nowhere"), "", "ftp://a.test/", "\ufffd\0"]
    rows = measured(stage(max_bytes=1000), urls)
    assert [row["status"] for row in rows] == ["failed_to_download"] * 6
    errors = [row["error"] for row in rows]
    assert errors == ["empty", "too_large", "http_404", "bad_url", "bad_url", "no_scheme"]
    assert all(row["sha256"] is None for row in rows)


def test_judge_gives_the_error_of_each_row(web: Web) -> None:
    web.files["a"] = encode(photo())
    one = stage()
    table = one.annotate(listed([web.url("a"), web.url("b")]))
    verdicts = one.judge(table)
    assert isinstance(verdicts, pa.StringArray)
    assert verdicts.to_pylist() == [None, "http_404"]
    assert one.judge(table.slice(0, 0)).to_pylist() == []
    assert one.annotate(listed([])).num_rows == 0


def test_a_local_folder_is_read_and_nothing_outside_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encode(photo()))
    (tmp_path / "secret.jpg").write_bytes(encode(photo()))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "empty.jpg").touch()
    os.mkfifo(folder / "pipe.jpg")
    lines = ["file_name,caption", "../secret.jpg,up", f"{tmp_path}/secret.jpg,there", "no.jpg,lost"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    one = stage(source=str(folder))
    (rows,) = sources.shards(one.config)
    errors = one.annotate(rows)["error"].to_pylist()
    found = dict(zip([Path(url).name for url in rows["url"].to_pylist()], errors, strict=True))
    assert found == {
        "a.jpg": None,
        "empty.jpg": "empty",
        "link.jpg": "outside_source",
        "pipe.jpg": "missing",
        "secret.jpg": "outside_source",
        "no.jpg": "missing",
    }


def test_a_local_path_is_not_fetched_and_a_listed_url_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(photo()))
    one = stage(source=str(tmp_path))
    for url in (str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").as_uri()):
        (row,) = measured(one, [url])
        assert row["error"] in ("no_scheme", "bad_url")
    for file in ("http://127.0.0.1:9/a.jpg", f"{tmp_path}/x::http://127.0.0.1:9/a.jpg"):
        (row,) = measured(one, ["http://127.0.0.1:9/a.jpg"], [file])
        assert row["error"] in ("outside_source", "missing")
    (row,) = measured(one, ["http://127.0.0.1:9/a.jpg"], [str(tmp_path / "a.jpg")])
    assert row["error"] is None


def test_what_is_switched_off_is_said(caplog: pytest.LogCaptureFixture) -> None:
    stage(robots=False)
    assert (
        "switched off by its settings: robots, requests_per_second, connections_per_host"
        in caplog.text
    )
    caplog.clear()
    stage(requests_per_second=5.0, connections_per_host=2)
    assert not caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": ""}, "download.source"),
        ({"source": ()}, "download.source"),
        ({"source": ("a.csv", "")}, "download.source"),
        ({"image_size": 0}, "download.image_size must be from 1 to 8192, got 0"),
        ({"limit": 0}, "download.limit"),
        ({"timeout": 0}, "download.timeout"),
        ({"timeout": float("nan")}, "download.timeout"),
        ({"threads": 0}, "download.threads"),
        ({"retries": -1}, "download.retries"),
        ({"max_bytes": 0}, "download.max_bytes"),
        ({"max_pixels": 10**9}, "download.max_pixels"),
        ({"max_redirects": -1}, "download.max_redirects"),
        ({"shard_size": 0}, "download.shard_size"),
        ({"requests_per_second": 0}, "download.requests_per_second must be above 0, or null"),
        ({"requests_per_second": float("nan")}, "download.requests_per_second"),
        ({"burst": 0}, "download.burst"),
        ({"connections_per_host": 0}, "download.connections_per_host"),
        ({"max_wait": float("inf")}, "download.max_wait"),
        ({"encode_quality": 101}, "download.encode_quality"),
        ({"encode_format": "png"}, "download.encode_quality must be from 0 to 9 for png, got 95"),
        ({"user_agent": " "}, "download.user_agent"),
        ({"contact": "me\r\nX: y"}, "download.contact"),
        ({"contact": "mé"}, "download.contact"),
        ({"resize_mode": "squash"}, "resize_mode"),
        ({"treads": 3}, "treads"),
    ],
)
def test_an_impossible_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(DownloadConfig).validate_python({"source": "list.csv", **settings})


def test_a_config_is_read_from_plain_values() -> None:
    adapter = TypeAdapter(DownloadConfig)
    config = adapter.validate_python({"source": ["a.csv", "b.csv"], "timeout": 3})
    assert config == DownloadConfig(source=("a.csv", "b.csv"), timeout=3.0)
    assert config.sources == (Source(path=("a.csv", "b.csv")),)
    assert adapter.validate_python({"source": "a.csv"}).sources == (Source(path="a.csv"),)


def test_only_what_changes_the_pool_is_measured() -> None:
    config = DownloadConfig(source="a.csv")
    patient = dataclasses.replace(config, timeout=60, retries=5, threads=1, contact="us@lab.test")
    assert patient.measurement() == config.measurement()
    slow = dataclasses.replace(
        config, requests_per_second=1, burst=1, connections_per_host=1, max_wait=9
    )
    assert slow.measurement() == config.measurement()
    for change in (
        {"image_size": 256},
        {"limit": 3},
        {"source": "b.csv"},
        {"max_bytes": 9},
        {"robots": False},
        {"honor_opt_out": False},
    ):
        changed: Any = change
        assert dataclasses.replace(config, **changed).measurement() != config.measurement()


def test_every_outcome_is_explained() -> None:
    for reason, sentence in DownloadStage.reasons.items():
        assert reason.isidentifier()
        assert sentence.endswith(".")


@pytest.mark.slow
def test_construction_imports_no_img2dataset() -> None:
    program = (
        "import sys; from stages.download import *;"
        "DownloadStage(DownloadConfig(source='a.csv')); print('img2dataset' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
