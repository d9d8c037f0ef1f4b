"""Download against every fault of a real web, over http and over https."""

import collections
import contextlib

import pyarrow.parquet as pq
import pytest
import web

from stages import sources
from stages.download import DownloadConfig, DownloadStage


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("realweb")
    port = web.free_port()
    web.build(out, f"http://127.0.0.1:{port}")
    with web.served(out / "site", port):
        yield out, port


@web.needs_shared
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_fault_has_its_reason_and_no_good_image_is_lost(site, scheme, tmp_path, monkeypatch):
    out, port = site
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
        stage = DownloadStage(config)
        stage.load()
        found = stage.annotate(rows)
    reason = dict(
        zip(
            zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True),
            stage.judge(found).to_pylist(),
            strict=True,
        )
    )
    seen = collections.defaultdict(set)
    for url, row in zip(urls, truth.to_pylist(), strict=True):
        kind = row["kind"] if row["drop_at"] == "download" else "good"
        seen[kind].add(reason[url, row["caption"]])
    assert seen.pop("good") == {None}
    assert seen.keys() == web.FAULTS.keys()
    assert {kind: reasons - web.FAULTS[kind] for kind, reasons in seen.items()} == {
        kind: set() for kind in web.FAULTS
    }
