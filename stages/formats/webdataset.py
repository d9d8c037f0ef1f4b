"""Tars of webdataset in the layout of img2dataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from stages.formats.base import Format, Shard, samples

__all__ = ["WebDataset"]


class WebDataset(Format):
    """A tar a shard: KEY.jpg, KEY.txt and KEY.json of each image.

    As img2dataset writes them: KEY is the name of the shard and the position in it, .txt holds a
    caption, .json that caption and what else is known. Of an image with several texts .txt and
    `caption` hold the first, the web caption where it is kept, and `captions` all.
    """

    name = "webdataset"
    about = """\
Tars in the layout of img2dataset: `KEY.jpg` (or what else the image is encoded as), `KEY.txt` and
`KEY.json` of each image. `.txt` and `caption` in `.json` hold its first text, the web caption
where it is kept; `captions`, `caption_sources` and `itm_scores` in `.json` hold all, in one order.

```python
tars = sorted(glob.glob("FOLDER/TARS"))
webdataset.WebDataset(tars, shardshuffle=100).decode("pil").to_tuple("jpg", "txt", "json")
```
"""

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"{self.stem(shard)}.tar"

    def data_files(self, split: str) -> str:
        """See `Format.data_files`."""
        return f"{split}-*.tar" if self.is_split else "*.tar"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`; equal pairs give equal bytes: members have no time and no owner."""
        digits = len(str(self.shard_size - 1))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index, sample in enumerate(samples(pairs)):
                key = f"{self.stem(shard)}{index:0{digits}d}"
                told = {
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "caption": sample.captions[0],
                    **sample.facts,
                    "uid": sample.uid,
                    "captions": sample.captions,
                    "caption_sources": sample.caption_sources,
                    "itm_scores": sample.itm_scores,
                }
                for extension, content in (
                    (sample.extension, sample.image),
                    ("txt", sample.captions[0].encode()),
                    ("json", json.dumps(told, ensure_ascii=False, indent=4).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        yield self.path(shard), buffer.getvalue()
