"""Webdataset tars in img2dataset's layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from stages.formats.base import Format, Shard, samples

__all__ = ["WebDataset"]


class WebDataset(Format):
    """One tar per shard, with KEY.jpg, KEY.txt and KEY.json for each image.

    As in img2dataset, KEY is the name of the shard and the position in it, .txt holds a caption,
    and .json holds the caption and all other fields. If an image has several captions, .txt and
    `caption` hold the first one (the web caption, if it was kept), and `captions` holds all.
    """

    name = "webdataset"
    about = """\
Tars in img2dataset's layout: `KEY.jpg` (or .png, .webp), `KEY.txt` and `KEY.json` for each image.
`.txt` and `caption` in `.json` hold the first caption (the web caption, if it was kept);
`captions`, `caption_sources`, `caption_names` (of their prompts) and `itm_scores` in `.json` hold
all of them, in the same order.

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
        """See `Format.files`; members have no time or owner, so equal pairs give equal bytes."""
        digits = len(str(self.shard_size - 1))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index, sample in enumerate(samples(pairs)):
                key = f"{self.stem(shard)}{index:0{digits}d}"
                metadata = {
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "caption": sample.captions[0],
                    **sample.facts,
                    **sample.texts,
                }
                for extension, content in (
                    (sample.extension, sample.image),
                    ("txt", sample.captions[0].encode()),
                    ("json", json.dumps(metadata, ensure_ascii=False, indent=4).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        yield self.path(shard), buffer.getvalue()
