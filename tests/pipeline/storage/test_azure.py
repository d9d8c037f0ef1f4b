"""Runs on Azure's blob storage, as Azurite serves it on loopback (`npm install azurite`)."""

import shutil
import socket
import subprocess
import time

import fsspec
import pyarrow as pa
import pytest
import yaml
from helpers import fakes

from models.errors import DamagedError, RunBusyError
from pipeline.cli.main import main
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results
from pipeline.results.verify import verify
from pipeline.storage.records import ExportRecord
from pipeline.storage.run import WHOLE_BYTES, Run
from pipeline.storage.stamps import stamps_of

pytest.importorskip("adlfs")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="needs azurite, of npm"),
]

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of every Azurite, as its documentation gives it."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An empty container, as a URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = [
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--silent",
        "--inMemoryPersistence",
    ]
    server = subprocess.Popen(
        ["azurite-blob", *options, "--skipApiVersionCheck", "--inMemoryPersistence"],
        cwd=tmp_path_factory.mktemp("azurite"),
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(
                "AZURE_STORAGE_CONNECTION_STRING",
                "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
                f"AccountKey={KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;",
            )
            fsspec.filesystem("az").clear_instance_cache()
            fsspec.filesystem("az").mkdir("container")
            yield "az://container"
    finally:
        server.kill()
        server.wait()


def test_files_are_written_read_named_and_removed(store):
    run = Run(f"{store}/files")
    table = pa.table({"uid": ["a", "b"], "image": [bytes(WHOLE_BYTES)] * 2})
    run.write_table(table, "pool", "00000.parquet")
    run.write_table(table.select(["uid"]), "pool", "00001.parquet")
    run.write(b"", "pool", "00002.parquet")
    assert run.shards("pool") == ["00000", "00001", "00002"]
    assert run.read_table("pool", "00000.parquet").equals(table)
    assert run.read_table("pool", "00001.parquet")["uid"].to_pylist() == ["a", "b"]
    with pytest.raises(DamagedError, match=r"pool/00002\.parquet: damaged"):
        run.read_table("pool", "00002.parquet")
    with pytest.raises(FileNotFoundError):
        run.read_table("pool", "00003.parquet")
    before = stamps_of(run, "pool")
    run.write_table(table.select(["uid"]), "pool", "00001.parquet")
    after = stamps_of(run, "pool")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"00001.parquet"}
    run.remove("pool")
    assert not run.exists("pool") and run.shards("pool") == []


def test_one_process_holds_a_run(store):
    with Run(f"{store}/held").lock(), pytest.raises(RunBusyError, match="is in use by process"):
        Run(f"{store}/held").lock().__enter__()
    with Run(f"{store}/held").lock():
        pass


def test_a_whole_run_is_the_run_on_disk(store, tmp_path, ray_here):
    fakes.photo_folder(tmp_path / "photos", 20)
    content = {
        "name": "azure",
        "run": f"{store}/run",
        "stages": {
            "download": {"source": str(tmp_path / "photos"), "image_size": 32, "shard_size": 8},
            "clean": {"min_side": 16},
            "dedup": {},
            "export": {"shard_size": 6},
        },
    }
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    near, far = Run(str(tmp_path / "run")), Run(content["run"])
    for more in (["--run", near.root], []):
        assert main(["run", str(path), "--workers", "2", "--quiet", *more]) == 0
    records = [run.read_record(ExportRecord, "curated", "manifest.json") for run in (near, far)]
    files = [{file.name: file.sha256 for file in record.files} for record in records]
    assert files[0] == files[1] and len(files[0]) == 4
    assert list(verify(far)) == []
    assert main(["export", str(path), "--quiet", "--set", "export.shard_size=9"]) == 0
    assert list(verify(far)) == [] and funnel(open_results(far))["stages"][-1]["state"] == "done"
