"""Download against every fault of a real web, over http and over https."""

import collections
import contextlib

import pyarrow.parquet as pq
import pytest
from helpers import web
from helpers.downloads import stage

from stages import sources
from stages.download import DownloadConfig, DownloadStage


@web.needs_shared
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_fault_has_its_reason_and_no_good_image_is_lost(
    realweb, scheme, tmp_path, monkeypatch
):
    out, port = realweb
    truth = pq.read_table(out / "truth.parquet")
    with contextlib.ExitStack() as exits:
        if scheme == "https":
            pem = web.certificate(tmp_path)
            monkeypatch.setenv("SSL_CERT_FILE", str(pem))
            secure = exits.enter_context(web.behind_tls(port, pem))
            base = f"https://127.0.0.1:{secure}"
        else:
            base = f"http://127.0.0.1:{port}"
        urls = [url.replace(f"http://127.0.0.1:{port}", base) for url in truth["url"].to_pylist()]
        listed = tmp_path / "pairs.parquet"
        pq.write_table(truth.set_column(0, "url", [urls]), listed)
        config = DownloadConfig(
            source=str(listed),
            timeout=4,
            image_size=64,
            shard_size=10_000,
            allow_private_addresses=True,
            requests_per_second=None,
            connections_per_host=None,
        )
        (rows,) = sources.shards(config)
        one = DownloadStage(config)
        one.load()
        found = one.annotate(rows)
    reason = dict(
        zip(
            zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True),
            one.judge(found).to_pylist(),
            strict=True,
        )
    )
    seen = collections.defaultdict(set)
    for url, row in zip(urls, truth.to_pylist(), strict=True):
        kind = row["kind"] if row["drop_at"] == "download" else "good"
        seen[kind].add(reason[url, web.as_read(row["caption"])])
    assert seen.pop("good") == {None}
    assert seen.keys() == web.FAULTS.keys()
    assert {kind: reasons - web.FAULTS[kind] for kind, reasons in seen.items()} == {
        kind: set() for kind in web.FAULTS
    }


EXPECTED = {
    "http_404": "http_404",
    "http_500": "http_5xx",
    "http_403": "http_403",
    "http_hang": "timeout",
    "http_loop": "redirect_loop",
    "http_reset": "connect",
    "truncated": "truncated",
    "html": "not_an_image",
    "empty": "empty",
    "corrupt": "not_an_image",
    "opt_out": "opted_out",
    "endless": "too_large",
    "bomb": "too_many_pixels",
    "svg": "svg",
}


@web.needs_shared
def test_every_fault_of_a_real_web_has_its_reason_and_no_good_image_is_lost(realweb):
    out, _ = realweb
    one = stage(source=str(out / "pairs.parquet"), timeout=3.0, retries=1, threads=32)
    truth = {
        (row["url"], web.as_read(row["caption"])): row
        for row in pq.read_table(out / "truth.parquet").to_pylist()
    }
    shards = list(sources.shards(one.config))
    rows = [row for shard in shards for row in one.annotate(shard).to_pylist()]
    assert sum(row["repeats"] + 1 for row in rows) == len(truth)
    wrong = [
        (kind, row["error"])
        for row in rows
        for kind in [truth[row["url"], row["caption"]]["kind"]]
        if row["error"] != EXPECTED.get(kind)
    ]
    assert not wrong
    assert {kind for kind in EXPECTED} <= {row["kind"] for row in truth.values()}
