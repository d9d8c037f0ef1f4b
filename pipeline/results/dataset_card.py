"""The data set card that an export carries as its README.md."""

from __future__ import annotations

from typing import Any

from pipeline.manifest.plan import Plan, revisions
from pipeline.results.funnel import funnel
from pipeline.results.markdown import code, front_matter, yaml_block
from pipeline.results.verdicts import Results
from pipeline.storage.records import ExportRecord
from stages.caption import CaptionStage
from stages.download import DownloadStage
from stages.export import OTHER, ExportStage
from stages.filter import FilterStage
from stages.formats import FORMATS, Format

__all__ = ["text"]

_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}


def text(results: Results, name: str, record: ExportRecord) -> str:
    """Write a card with front matter that Hugging Face reads.

    It has the counts, the format, the funnel, the rights and how to rebuild the data set.

    Args:
        results: The results of the run.
        name: The export.
        record: The manifest.json of the export.
    """
    plan = results.plan
    export = plan.export(name)
    pairs, splits = record.pairs, record.splits
    front: dict[str, Any] = {
        "license": export.config.license,
        "task_categories": ["image-to-text", "text-to-image"],
        "size_categories": [_size(sum(pairs.values()))],
        "tags": ["capfilt", "image-text pairs"],
    }
    patterns = {split: export.format.data_files(split) for split in splits}
    if patterns and all(patterns.values()):
        files = [{"split": split, "path": path} for split, path in patterns.items()]
        front["configs"] = [{"config_name": "default", "data_files": files}]
    lines = [
        *front_matter(front),
        f"# {record.name}",
        "",
        f"{sum(pairs.values()):,} image-text pairs over {record.images:,} images: "
        + ", ".join(f"{pairs[source]:,} {source}" for source in sorted(pairs))
        + ". Curated with capfilt after CapFilt (BLIP, arXiv 2201.12086).",
        "",
        *_table("split", "images", splits),
        *_table("source", "pairs", record.sources),
        f"## {export.config.format}",
        "",
        _about(export.format),
        "",
        *_draws(export),
        *_funnel(results),
        *_stages(plan),
        *_rights(plan, export, pairs),
        "## Rebuild",
        "",
        f"`{_command(plan, name)}` with",
        "",
        *yaml_block(plan.manifest.source),
        f"Decision fingerprint `{record.decision}`; `manifest.json` holds the SHA-256 of "
        "every shard, `capfilt verify` checks them.",
        "",
    ]
    return "\n".join(lines)


def _about(form: Format) -> str:
    about = FORMATS[form.name].about.strip()
    return about.replace("TARS", form.data_files("train") or "")


def _draws(export: ExportStage) -> list[str]:
    """What to know of images that were drawn with repetition."""
    if not export.is_drawn:
        return []
    where = export.format.draws
    if where is None:
        said = "This format does not say how often; each stands once."
    else:
        said = f"An image stands once; {where} says how often it was drawn (human pairs: 1)."
    if export.format.name == "parquet":
        said += " `capfilt train` passes over it that often an epoch."
    return [f"Images were drawn with repetition. {said}", ""]


def _table(name: str, unit: str, counts: dict[str, int]) -> list[str]:
    rows = [f"| {code(key)} | {number:,} |" for key, number in sorted(counts.items())]
    return [f"| {name} | {unit} |", "| --- | ---: |", *rows, ""] if rows else []


def _funnel(results: Results) -> list[str]:
    lines = [
        "## Funnel",
        "",
        "| stage | rows | kept | rejected, by reason |",
        "| --- | ---: | ---: | --- |",
    ]
    for stage in funnel(results)["stages"]:
        if stage["name"] == ExportStage.name:
            continue
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in stage["reasons"].items())
        lines.append(f"| {stage['name']} | {stage['rows']:,} | {stage['kept']:,} | {reasons} |")
    return [*lines, ""]


def _stages(plan: Plan) -> list[str]:
    """The fingerprint of each stage, and the weights of its models."""
    lines = ["## Stages", "", "| stage | fingerprint | models |", "| --- | --- | --- |"]
    for name in plan.names:
        weights = revisions(plan.measurement(name))
        models = ", ".join(f"{role} {code(digest)}" for role, digest in weights.items()) or "-"
        lines.append(f"| {name} | {code(plan.fingerprint(name))} | {models} |")
    return [*lines, ""]


def _rights(plan: Plan, export: ExportStage, pairs: dict[str, int]) -> list[str]:
    """The section on rights: the owners of the images and of each kind of text, if known."""
    config: Any = plan.manifest.stages[DownloadStage.name]
    lines = [
        "## Rights",
        "",
        "Images and web captions belong to their owners; this card grants no licence to them. "
        "Check the terms of each source before use or redistribution, and leave out what its owner "
        "does not want included.",
        "",
    ]
    if export.config.license != OTHER:
        lines.append(
            f"- The licence {code(export.config.license)} is granted for the selection and for the "
            "captions that were written for it."
        )
    if config.honor_opt_out:
        lines.append(
            "- Images whose server said noai, noimageai, noindex or noimageindex were left out."
        )
    if config.robots:
        lines.append("- robots.txt was asked before each download.")
    models = {
        name: code(getattr(plan.manifest.stages[name], "model", ""))
        for name in (CaptionStage.name, FilterStage.name)
        if name in plan.manifest.stages
    }
    if (pairs.get("synthetic") or pairs.get("fused")) and CaptionStage.name in models:
        lines.append(f"- Synthetic captions are by {models[CaptionStage.name]}, under its terms.")
    if export.config.filtered and FilterStage.name in models:
        lines.append(f"- Texts were judged by {models[FilterStage.name]}.")
    if pairs.get("human"):
        files = ", ".join(map(code, export.config.human))
        lines.append(f"- Human captions are of {files}, with the licence of that annotation.")
    if export.config.format == "urls":
        lines.append("- No image is part of this data set.")
    return [*lines, ""]


def _command(plan: Plan, name: str) -> str:
    if name == ExportStage.name:
        return "capfilt run manifest.yaml"
    return f"capfilt run manifest.yaml, capfilt export manifest.yaml --name {plan.folder(name)[-1]}"


def _size(pairs: int) -> str:
    return next((name for most, name in _SIZES.items() if pairs < most), "n>1M")
