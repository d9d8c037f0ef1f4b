"""Parquet: the pairs with their images, and lists of URLs without."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from stages.formats.base import Format, Shard, samples

__all__ = ["URLS", "Parquet", "Urls"]

_URLS: list[pa.Field[pa.DataType]] = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("url", pa.string()),
    pa.field("captions", pa.list_(pa.string()), nullable=False),
    pa.field("caption_sources", pa.list_(pa.string()), nullable=False),
    pa.field("itm_scores", pa.list_(pa.float32()), nullable=False),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("source", pa.string()),
]
URLS = pa.schema(_URLS)
"""One row an image, its texts side by side."""


class Parquet(Format):
    """PAIRS as they are, which `datasets` decodes and `capfilt train` reads."""

    name = "parquet"
    about = """\
One row an (image, text); the texts of an image stand together, the web caption first.

```python
datasets.load_dataset("FOLDER")  # images come decoded
```

| column | meaning |
| --- | --- |
| uid | identity of the sample; texts of one image share it |
| image | encoded bytes, as Hugging Face's Image feature |
| caption | the text |
| caption_source | web (as found, normalised), synthetic (by the captioner) or human |
| itm_score | the filter's probability that image and text match; null if not judged |
| width, height | pixels of the stored image |
| url, source | where the image came from; `***` in place of passwords and signatures |
| sha256 | of the bytes as downloaded, before any resize |
"""

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"{self.stem(shard)}.parquet"

    def data_files(self, split: str) -> str:
        """See `Format.data_files`."""
        return f"{split}-*.parquet" if self.is_split else "*.parquet"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        yield self.path(shard), _encoded(pairs)


class Urls(Parquet):
    """Where each image was found, what it was and what is said of it; never the image itself."""

    name = "urls"
    about = """\
One row an image, without the image: for redistribution where the images may not be.

| column | meaning |
| --- | --- |
| uid | identity of the sample |
| url | where it was found, `***` for passwords and signatures; null if it never had one |
| captions | all its texts, the web caption first |
| caption_sources | web (as found, normalised), synthetic (by the captioner) or human |
| itm_scores | the filter's probability that image and text match; null if not judged |
| sha256 | of the bytes as downloaded: images that changed since can be told |
| width, height | pixels of the image as it was stored for curation |
| source | the list that named the image |

The images come back with img2dataset, which leaves out those that are no longer what they were:

```
img2dataset --url_list FOLDER --input_format parquet --url_col url --output_folder images \\
  --save_additional_columns '["uid", "captions"]' --compute_hash sha256 \\
  --verify_hash '["sha256", "sha256"]'
```
"""

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        rows = [
            {
                "uid": sample.uid,
                "captions": sample.captions,
                "caption_sources": sample.caption_sources,
                "itm_scores": sample.itm_scores,
                **sample.facts,
            }
            for sample in samples(pairs)
        ]
        yield self.path(shard), _encoded(pa.Table.from_pylist(rows, URLS))


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=3)
    return buffer.getvalue()
