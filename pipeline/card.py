"""The data set card that an export carries as its README.md."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.manifest import Plan
from pipeline.status import funnel
from pipeline.store import Run
from stages.export import ExportStage

__all__ = ["write"]


def write(run: Run, plan: Plan, manifest: dict[str, Any]) -> str:
    """A card with front matter that Hugging Face reads: counts, funnel, how to rebuild.

    Args:
        run: The run.
        plan: Its plan.
        manifest: What curated/manifest.json will hold.
    """
    front = {
        "configs": [{"config_name": "default", "data_files": "*.parquet"}],
        "task_categories": ["image-to-text", "text-to-image"],
        "tags": ["capfilt", "image-text pairs"],
    }
    pairs = manifest["pairs"]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {manifest['name']}",
        "",
        f"{sum(pairs.values()):,} image-text pairs over {manifest['images']:,} images: "
        + ", ".join(f"{pairs[source]:,} {source}" for source in sorted(pairs))
        + ". Curated with capfilt after CapFilt (BLIP, arXiv 2201.12086).",
        "",
        "```python",
        'datasets.load_dataset("parquet", data_files="*.parquet")  # images come decoded',
        "```",
        "",
        "| column | meaning |",
        "| --- | --- |",
        "| uid | identity of the sample; texts of one image share it |",
        "| image | encoded bytes, as Hugging Face's Image feature |",
        "| caption | the text |",
        "| caption_source | web (as found, normalised), synthetic (by the captioner) or human |",
        "| itm_score | the filter's probability that image and text match; null if not judged |",
        "| width, height | pixels of the stored image |",
        "| url, source | where the image came from |",
        "",
        "## Funnel",
        "",
        "| stage | rows | kept | rejected, by reason |",
        "| --- | ---: | ---: | --- |",
    ]
    for stage in funnel(run, plan)["stages"]:
        if stage["name"] == ExportStage.name:
            continue
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in stage["reasons"].items())
        lines.append(f"| {stage['name']} | {stage['rows']:,} | {stage['kept']:,} | {reasons} |")
    lines += [
        "",
        "## Rights",
        "",
        "Images and web captions belong to their owners; this card grants no licence to them. "
        "Check the terms of each source before use or redistribution.",
        "",
        "## Rebuild",
        "",
        "`capfilt run manifest.yaml` with",
        "",
        "```yaml",
        yaml.safe_dump(dict(plan.manifest.source), sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        f"Decision fingerprint `{manifest['decision']}`; `manifest.json` holds the SHA-256 of "
        "every shard.",
        "",
    ]
    return "\n".join(lines)
