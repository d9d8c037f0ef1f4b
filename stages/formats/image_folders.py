"""Folders of image files with JSON beside them: LLaVA's, BLIP's and Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from models.random import hash_of
from stages.formats.base import Format, Shard, samples

__all__ = ["BRIEF", "Blip", "ImageFolder", "Llava"]

IMAGE = "<image>"

BRIEF = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
"""The instructions for brief image description of LLaVA (arXiv 2304.08485, appendix)."""


class Listed(Format):
    """Images in folders, a folder a shard, and one JSON list a split."""

    has_list = True

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"images/{self.stem(shard)}"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        for sample in samples(pairs):
            yield f"{self.path(shard)}/{sample.file}", sample.image


class Llava(Listed):
    """What LLaVA's first stage trains on (arXiv 2304.08485, section 4.2).

    A conversation of one turn for each text: an instruction to describe the image briefly, drawn
    from `BRIEF` by the seed and the id, and the text as the answer. LLaVA takes the tag of an image
    for an image wherever it stands; in a text it becomes (image).
    """

    name = "llava"
    about = """\
`train.json` (and `validation.json`) is a list of conversations of one turn, one a text: `id`,
`image`, `conversations`. The human turn is one of LLaVA's instructions for a brief description. The
id of the second text of an image ends in -1, of the third in -2.

```
python llava/train/train_mem.py --data_path FOLDER/train.json --image_folder FOLDER/images ...
```
"""

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """See `Format.entries`."""
        for sample in samples(pairs):
            for index, caption in enumerate(sample.captions):
                name = f"{sample.uid}-{index}" if index else sample.uid
                ask = BRIEF[hash_of(f"{self.seed} {name}") % len(BRIEF)]
                yield {
                    "id": name,
                    "image": f"{self.stem(shard)}/{sample.file}",
                    "conversations": [
                        {"from": "human", "value": f"{IMAGE}\n{ask}"},
                        {"from": "gpt", "value": caption.replace(IMAGE, "(image)")},
                    ],
                }


class Blip(Listed):
    """What BLIP's pre-training reads (arXiv 2201.12086): a list of {image, caption}, one a text."""

    name = "blip"
    about = """\
`train.json` (and `validation.json`) is a list of `{"image": PATH, "caption": TEXT}`, one a text.
BLIP opens PATH as it stands there, so train from within the folder:

```yaml
train_file: ["train.json"]  # configs/pretrain.yaml
laion_path: ""
```
"""

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """See `Format.entries`."""
        for sample in samples(pairs):
            for caption in sample.captions:
                yield {"image": f"{self.path(shard)}/{sample.file}", "caption": caption}


class ImageFolder(Format):
    """Hugging Face's imagefolder: images with a metadata.jsonl, a folder a shard.

    All values are there for every image: `datasets` refuses folders whose columns differ in type,
    and takes a column that is null in one of them for another type.
    """

    name = "imagefolder"
    about = """\
Images with a `metadata.jsonl` beside them, in folders SPLIT/SHARD. `text` is the first text of an
image, the web caption where it is kept; `captions` are all, `caption_sources` says of each whether
it is web, synthetic or human.

```python
datasets.load_dataset("imagefolder", data_dir="FOLDER")
```

The scripts of diffusers that fine-tune a text-to-image model take
`--train_data_dir FOLDER --caption_column text`, or `captions` to draw one of several.
"""

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"{shard.split}/{'human-' * shard.is_human}{shard.number:05d}"

    def data_files(self, split: str) -> str:
        """See `Format.data_files`."""
        return f"{split}/**"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        lines = []
        for sample in samples(pairs):
            line = {
                "file_name": sample.file,
                "text": sample.captions[0],
                "captions": sample.captions,
                "caption_sources": sample.caption_sources,
                "uid": sample.uid,
                "width": sample.facts["width"],
                "height": sample.facts["height"],
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            yield f"{self.path(shard)}/{sample.file}", sample.image
        yield f"{self.path(shard)}/metadata.jsonl", "".join(lines).encode()
