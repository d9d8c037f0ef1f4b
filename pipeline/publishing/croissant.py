"""Croissant metadata of an export (mlcommons.org/croissant, version 1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.storage.records import ExportRecord
from stages.formats.parquet import DRAWN_URLS, URLS
from stages.schema import DRAWN_PAIRS, PAIRS

__all__ = ["croissant"]

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

SCHEMAS = {"parquet": (PAIRS, DRAWN_PAIRS), "urls": (URLS, DRAWN_URLS)}
"""The columns of the formats whose rows are described; the second with those of drawn rows."""

ENCODINGS = {
    "parquet": "application/x-parquet",
    "tar": "application/x-tar",
    "json": "application/json",
    "jsonl": "application/jsonlines",
}


def croissant(
    record: ExportRecord,
    *,
    name: str,
    url: str,
    about: str,
    license: str,
    shards: Mapping[str, str],
    is_drawn: bool = False,
) -> dict[str, Any]:
    """Describe an export: its files with their SHA-256, and the columns of Parquet.

    Args:
        record: Its manifest.json.
        name: The name of the data set.
        url: Where it is published.
        about: What it is, in a sentence.
        license: Its licence, as the hub names it.
        shards: The glob of the data files of each split; empty for formats without.
        is_drawn: Whether it says how often each image was drawn.
    """
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file.name,
            "name": file.name,
            "contentUrl": file.name,
            "encodingFormat": ENCODINGS.get(file.name.rpartition(".")[2], "text/plain"),
            "sha256": file.sha256,
        }
        for file in record.files
        if "." in file.name  # a folder has no SHA-256 that others would compute
    ]
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": about,
        "url": url,
        "license": f"https://choosealicense.com/licenses/{license}/",
        "version": "1.0.0",
        "distribution": files,
    }
    schemas = SCHEMAS.get(record.format)
    if schemas is not None and shards:
        described["distribution"] = [
            *files,
            *(
                {
                    "@type": "cr:FileSet",
                    "@id": split,
                    "name": split,
                    "encodingFormat": ENCODINGS["parquet"],
                    "includes": pattern,
                }
                for split, pattern in shards.items()
            ),
        ]
        described["recordSet"] = [
            {
                "@type": "cr:RecordSet",
                "@id": f"{split}-rows",
                "name": f"{split}-rows",
                "field": [_field(split, field) for field in schemas[is_drawn]],
            }
            for split in shards
        ]
    return described


def _field(split: str, field: pa.Field[Any]) -> dict[str, Any]:
    """The description of a column."""
    identifier = f"{split}-rows/{field.name}"
    source: dict[str, Any] = {"fileSet": {"@id": split}, "extract": {"column": field.name}}
    described: dict[str, Any] = {"@type": "cr:Field", "@id": identifier, "name": identifier}
    kind: Any = field.type
    if pa.types.is_struct(kind):
        source["transform"] = {"jsonPath": "bytes"}
        return {**described, "dataType": "sc:ImageObject", "source": source}
    if pa.types.is_list(kind):
        described["repeated"] = True
        kind = kind.value_type
    if pa.types.is_integer(kind):
        name = "sc:Integer"
    else:
        name = "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
    return {**described, "dataType": name, "source": source}
