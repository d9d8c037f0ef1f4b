"""Parquet formats: pairs with their images, and lists of URLs without images."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from stages.formats.base import Format, Shard, samples

__all__ = ["DRAWN_URLS", "URLS", "Parquet", "Urls"]

_URLS: list[pa.Field[pa.DataType]] = [
    pa.field("uid", pa.string(), nullable=False),
    pa.field("url", pa.string()),
    pa.field("captions", pa.list_(pa.string()), nullable=False),
    pa.field("captions_full", pa.list_(pa.string()), nullable=False),
    pa.field("caption_sources", pa.list_(pa.string()), nullable=False),
    pa.field("itm_scores", pa.list_(pa.float32()), nullable=False),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("source", pa.string()),
    pa.field("caption_names", pa.list_(pa.string()), nullable=False),
]
URLS = pa.schema(_URLS)
"""One row per image, with its captions as lists."""

DRAWN_URLS = URLS.append(pa.field("draws", pa.int32(), nullable=False))
"""The same where images were drawn with repetition."""


class Parquet(Format):
    """The table PAIRS or DRAWN_PAIRS, which `datasets` decodes and `capfilt train` reads."""

    name = "parquet"
    draws = "the column `draws`"
    about = """\
One row per (image, caption); the captions of an image are adjacent, the web caption first.

```python
datasets.load_dataset("FOLDER")  # decodes the images
```

| column | meaning |
| --- | --- |
| uid | id of the sample; the captions of one image share it |
| image | encoded bytes, as Hugging Face's Image feature |
| caption | the caption |
| caption_full | the caption before the filter dropped sentences; null if it dropped none |
| caption_source | web (from the web page), synthetic, fused (made of the web caption) or human |
| caption_name | the name of a synthetic caption's prompt; null if it has none |
| itm_score | the filter's probability of a match (the least of its sentences); null if not judged |
| width, height | size of the stored image, in pixels |
| url, source | where the image came from; passwords and signatures are replaced by `***` |
| sha256 | SHA-256 of the file as downloaded, before it was resized |
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
    """The URL, checksum, size and captions of each image, without the image itself."""

    name = "urls"
    about = """\
One row per image, without the image: for redistribution where the images must not be copied.

| column | meaning |
| --- | --- |
| uid | id of the sample |
| url | URL of the image, with passwords and signatures replaced by `***`; null if it has none |
| captions | all captions of the image, the web caption first |
| captions_full | each caption before the filter dropped sentences; null if it dropped none |
| caption_sources | web (from the web page), synthetic, fused (made of the web caption) or human |
| caption_names | the names of the prompts of synthetic captions; null without one |
| itm_scores | the filter's probability that image and caption match; null if not judged |
| sha256 | SHA-256 of the file as downloaded, to detect images that have changed |
| width, height | size of the image as stored for curation, in pixels |
| source | the source that listed the image |

img2dataset downloads the images again, and leaves out those that have changed:

```
img2dataset --url_list FOLDER --input_format parquet --url_col url --output_folder images \\
  --save_additional_columns '["uid", "captions"]' --compute_hash sha256 \\
  --verify_hash '["sha256", "sha256"]'
```
"""

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        rows = [{**sample.texts, **sample.facts} for sample in samples(pairs)]
        schema = DRAWN_URLS if "draws" in pairs.column_names else URLS
        yield self.path(shard), _encoded(pa.Table.from_pylist(rows, schema))


def _encoded(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=3)
    return buffer.getvalue()
