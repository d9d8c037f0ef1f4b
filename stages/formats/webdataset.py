"""Webdataset tars in img2dataset's layout, plain or with the index that energon reads."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from stages.formats.base import TRAIN, VALIDATION, Format, Shard, samples

__all__ = ["Energon", "WebDataset"]


class WebDataset(Format):
    """One tar per shard, with KEY.jpg, KEY.txt and KEY.json for each image.

    As in img2dataset, KEY is the name of the shard and the position in it, .txt holds a caption,
    and .json holds the caption and all other fields. If an image has several captions, .txt and
    `caption` hold one of them (see `Format.caption`), and `captions` holds all.
    """

    name = "webdataset"
    has_choice = True
    draws = "`.json`"
    about = """\
Tars in img2dataset's layout: `KEY.jpg` (or .png, .webp), `KEY.txt` and `KEY.json` for each image.
`.txt` and `caption` in `.json` hold one caption: the first (the web caption, if it was kept), or as
`export.captions` says;
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
        """See `Format.files`."""
        yield self.path(shard), self._tar(shard, pairs)[0]

    def _tar(self, shard: Shard, pairs: pa.Table) -> tuple[bytes, list[int]]:
        """Return a tar, and where each of its images begins.

        Members have no time or owner, so equal pairs give equal bytes.
        """
        digits = len(str(self.shard_size - 1))
        buffer, begins = io.BytesIO(), []
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index, sample in enumerate(samples(pairs)):
                key = f"{self.stem(shard)}{index:0{digits}d}"
                caption = self.caption(sample)
                begins.append(tar.offset)
                metadata = {
                    "key": key,
                    "status": "success",
                    "error_message": None,
                    "caption": caption,
                    **sample.facts,
                    **sample.texts,
                }
                for extension, content in (
                    (sample.extension, sample.image),
                    ("txt", caption.encode()),
                    ("json", json.dumps(metadata, ensure_ascii=False, indent=4).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            end = tar.offset
        return buffer.getvalue(), [*begins, end]


class Energon(WebDataset):
    """Tars of `WebDataset`, with the index that Megatron energon makes by `energon prepare`.

    Beside NAME.tar is NAME.tar.idx: where each image begins and the last one ends, as uint64.
    .nv-meta holds the number of images of each tar, the splits, and which member is what.
    """

    name = "energon"
    has_index = True
    about = """\
Tars as of the format `webdataset`, with the index of Megatron energon beside them (`.nv-meta`,
`*.tar.idx`), so that `energon prepare` need not be run. A sample is a `CaptioningSample`.

```python
from megatron.energon import WorkerConfig, get_train_dataset

data = get_train_dataset(
    "FOLDER",
    batch_size=32,
    shuffle_buffer_size=1000,
    max_samples_per_sequence=100,
    worker_config=WorkerConfig.default_worker_config(),
)
```

Energon samples by key (`index.sqlite`) and joins data sets only after `energon prepare FOLDER`.
"""

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """See `Format.entries`."""
        yield {"tar": self.path(shard), "begins": self._tar(shard, pairs)[1]}

    def index(self, entries: Mapping[str, Sequence[bytes]]) -> Iterator[tuple[str, str, bytes]]:
        """See `Format.index`."""
        counts: dict[str, int] = {}
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        names = {TRAIN: "train", VALIDATION: "val"}
        for split, lines in entries.items():
            for entry in map(json.loads, lines):
                tar, begins = entry["tar"], entry["begins"]
                counts[tar] = len(begins) - 1
                parts[names[split]].append(tar)
                yield split, f"{tar}.idx", struct.pack(f"<{len(begins)}Q", *begins)
        sample = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
        fields = {"image": "jpg,png,webp", "caption": "txt"}
        for name, content in (
            (".info.json", {"energon_version": "7.0.0", "shard_counts": counts}),
            ("split.yaml", {"split_parts": parts, "exclude": []}),
            ("dataset.yaml", {"sample_type": sample, "field_map": fields}),
        ):  # JSON is YAML
            yield "", f".nv-meta/{name}", (json.dumps(content, indent=2) + "\n").encode()
