"""Formats with image files and JSON: LLaVA's, BLIP's and Hugging Face's imagefolder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from models.random import hash_of
from models.text.instructions import BRIEF
from stages.formats.base import Format, Shard, samples

__all__ = ["Blip", "ImageFolder", "Llava", "Sidecars"]

IMAGE = "<image>"


class Listed(Format):
    """One folder of images per shard, and one JSON list per split."""

    has_index = True

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"images/{self.stem(shard)}"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        for sample in samples(pairs):
            yield f"{self.path(shard)}/{sample.file}", sample.image


class Llava(Listed):
    """The training data of LLaVA's first stage (arXiv 2304.08485, section 4.2).

    Each caption is a conversation of one turn: an instruction from `BRIEF`, chosen by the seed and
    the id, and the caption as the answer. LLaVA treats `<image>` anywhere as an image, so it is
    replaced by (image) in captions.
    """

    name = "llava"
    about = """\
`train.json` (and `validation.json`) is a list with one conversation of one turn per caption: `id`,
`image`, `conversations`. The human turn is one of LLaVA's instructions for a brief description. The
id of an image's second caption ends in -1, that of the third in -2.

```
python llava/train/train_mem.py --data_path FOLDER/train.json --image_folder FOLDER/images ...
```
"""

    def entries(self, shard: Shard, pairs: pa.Table) -> Iterator[dict[str, Any]]:
        """See `Format.entries`."""
        for sample in samples(pairs):
            for index, caption in enumerate(sample.captions):
                name = f"{sample.uid}-{index}" if index else sample.uid
                instruction = BRIEF[hash_of(f"{self.seed} {name}") % len(BRIEF)]
                yield {
                    "id": name,
                    "image": f"{self.stem(shard)}/{sample.file}",
                    "conversations": [
                        {"from": "human", "value": f"{IMAGE}\n{instruction}"},
                        {"from": "gpt", "value": caption.replace(IMAGE, "(image)")},
                    ],
                }


class Blip(Listed):
    """The input of BLIP's pre-training (arXiv 2201.12086): a list of {image, caption}."""

    name = "blip"
    about = """\
`train.json` (and `validation.json`) is a list with `{"image": PATH, "caption": TEXT}` for each
caption. BLIP opens PATH relative to the working directory, so train from within the folder:

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
    """Hugging Face's imagefolder: one folder per shard, with images and a metadata.jsonl.

    Every image has a value in every column: `datasets` refuses folders whose columns differ in
    type, and a column with only nulls counts as another type.
    """

    name = "imagefolder"
    has_choice = True
    draws = "`metadata.jsonl`"
    about = """\
Images with a `metadata.jsonl` in folders SPLIT/SHARD. `text` is one caption of an image (the
first, which is the web caption if it was kept, or as `export.captions` says), `captions` are all of
them, `caption_sources` gives for each web, synthetic, fused or human, and `caption_names` the name
of its prompt, empty if it has none.

```python
datasets.load_dataset("imagefolder", data_dir="FOLDER")
```

For diffusers' text-to-image fine-tuning scripts, use
`--train_data_dir FOLDER --caption_column text`, or `captions` to sample one of several.
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
            line: dict[str, Any] = {
                "file_name": sample.file,
                "text": self.caption(sample),
                "captions": sample.captions,
                "caption_sources": sample.caption_sources,
                "caption_names": [name or "" for name in sample.caption_names],
                "uid": sample.uid,
                "width": sample.facts["width"],
                "height": sample.facts["height"],
            }
            if "draws" in sample.facts:
                line["draws"] = sample.facts["draws"]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            yield f"{self.path(shard)}/{sample.file}", sample.image
        yield f"{self.path(shard)}/metadata.jsonl", "".join(lines).encode()


class Sidecars(Format):
    """Images, and a text of the same name beside each, as kohya's scripts and others read them."""

    name = "sidecars"
    has_choice = True
    about = """\
Images in folders SPLIT/SHARD, and beside each a `.txt` of the same name with its caption: the first
(the web caption, if it was kept), or as `export.captions` says; `all` writes a line for each.

- kohya's sd-scripts: a `[[datasets.subsets]]` with `image_dir = "FOLDER/train/00000"` and
  `caption_extension = ".txt"` for each folder; with `captions: all` also `enable_wildcard = true`,
  which takes a line at random.
- ai-toolkit: `folder_path: FOLDER/train/00000` and `caption_ext: txt`.
- SimpleTuner: `"instance_data_dir": "FOLDER/train"` and `"caption_strategy": "textfile"`.
"""

    def path(self, shard: Shard) -> str:
        """See `Format.path`."""
        return f"{shard.split}/{'human-' * shard.is_human}{shard.number:05d}"

    def files(self, shard: Shard, pairs: pa.Table) -> Iterator[tuple[str, bytes]]:
        """See `Format.files`."""
        for sample in samples(pairs):
            yield f"{self.path(shard)}/{sample.file}", sample.image
            yield f"{self.path(shard)}/{sample.uid}.txt", self.caption(sample).encode()
