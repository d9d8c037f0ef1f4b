"""What a run tells of itself while it goes: JSON logs, and metrics scraped from a real Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import fakes, web

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def made(tmp_path):
    photos = fakes.photo_folder(tmp_path / "photos", 6)
    (photos / "broken.jpg").write_bytes(b"not an image")
    content = {
        "name": "birds",
        "run": str(tmp_path / "run"),
        "stages": {
            "download": {"source": str(photos), "image_size": 32, "shard_size": 4},
            "clean": {"min_side": 16},
        },
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


def test_logs_are_json_with_run_stage_and_shard(made):
    command = [sys.executable, "-m", "pipeline.cli", "run", str(made / "m.yaml")]
    done = subprocess.run(
        [*command, "--log-json", "--workers", "1", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["run"] for line in lines} == {str(made / "run")}
    shards = [line for line in lines if line["message"] == "shard done"]
    assert {(line["stage"], line["shard"]) for line in shards} == {
        (stage, shard) for stage in ("download", "clean") for shard in ("00000", "00001")
    }
    assert sum(line["rows"] for line in shards if line["stage"] == "download") == 7
    ends = {line["stage"]: line for line in lines if line["message"] == "stage ends"}
    assert ends["download"]["reasons"] == {"not_an_image": 1}


SCRAPE = """
import re, sys, time, urllib.request
import ray
from rich.console import Console
from pipeline.manifest.manifest import Manifest
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session

manifest, port = sys.argv[1], int(sys.argv[2])
ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    _metrics_export_port=port,
    _system_config={"metrics_report_interval_ms": 200},
    log_to_driver=False,
)

def scrape():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""

with Session(Manifest.load(manifest), progress=Progress(Console(quiet=True), True)) as session:
    session.run()
    end = time.monotonic() + 600
    last = re.compile('ray_capfilt_shard_seconds_count.*stage="clean".* 2([.]0)?$', re.M)
    while not last.search(scrape()) and time.monotonic() < end:
        time.sleep(0.5)
    print("\\n".join(line for line in scrape().splitlines() if "capfilt" in line))
ray.shutdown()
"""


def test_rows_and_reasons_are_scraped_from_rays_own_exporter(made):
    pytest.importorskip("opencensus", reason="needs capfilt[cluster]")
    pytest.importorskip("prometheus_client", reason="needs capfilt[cluster]")
    done = subprocess.run(
        [sys.executable, "-c", SCRAPE, str(made / "m.yaml"), str(web.free_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(done.stdout + "\n"):
        for sample in family.samples:
            if sample.labels.get("run") == "birds":
                key = (sample.name, sample.labels["stage"], sample.labels.get("reason"))
                found[key] = found.get(key, 0) + sample.value
                assert sample.labels["worker"]
    assert found["ray_capfilt_rows_total", "download", None] == 7
    assert found["ray_capfilt_rows_total", "clean", None] == 6
    assert found["ray_capfilt_rejected_total", "download", "not_an_image"] == 1
    arrived = sum(path.stat().st_size for path in (made / "photos").glob("*.jpg"))
    assert found["ray_capfilt_bytes_total", "download", None] == arrived
    assert found["ray_capfilt_shard_seconds_count", "clean", None] == 2
