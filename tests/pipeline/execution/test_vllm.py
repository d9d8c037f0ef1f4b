"""Runs whose captions come from vLLM, in a Ray worker and as a server on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import fakes
from helpers.vlms import save_released_llava, vllm_serve
from rich.console import Console

from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.results.open_run import open_plan
from pipeline.storage.run import Run

pytest.importorskip("vllm", reason="vLLM is an extra")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_released_llava(tmp_path_factory.mktemp("llava"), width=64)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.photo_folder(tmp_path_factory.mktemp("photos"), 6)


def captions(photos: Path, run: Path, **caption: object) -> dict[str, list[str]]:
    """The captions of each image after a run."""
    stages = {
        "download": {"source": str(photos), "image_size": 64, "shard_size": 3},
        "caption": {"max_tokens": 12, "num_captions": 2, **caption},
        "export": {"filtered": False},
    }
    made = Manifest.parse({"name": "vllm", "run": str(run), "stages": stages})
    with Session(made, workers=1, progress=Progress(Console(quiet=True), quiet=True)) as session:
        session.run()
    opened = Run(made.run)
    plan = open_plan(opened)
    found = {}
    for shard in opened.shards(*plan.folder("caption")):
        uids = opened.read_table("pool", f"{shard}.parquet", columns=["uid"])["uid"].to_pylist()
        table = opened.read_table(*plan.folder("caption"), f"{shard}.parquet")
        found.update(zip(uids, table["synthetic"].to_pylist(), strict=True))
    return found


def test_a_worker_and_a_server_write_the_same_captions(
    model: str, photos: Path, tmp_path: Path, ray_here: None
) -> None:
    worker = captions(
        photos, tmp_path / "worker", engine="vllm", model=model, device="cpu", dtype="float32"
    )
    assert len(worker) == 6 and all(len(own) == 2 for own in worker.values())
    with vllm_serve(model, tmp_path / "serve.log") as url:
        served = captions(photos, tmp_path / "served", server=url, model="llava")
    assert served == worker
