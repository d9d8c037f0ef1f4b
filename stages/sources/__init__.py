"""Readers that turn lists of URLs, and images that need no download, into rows for download.

All text is untrusted and kept unchanged: text whose encoding is unknown is refused or counted, and
never replaced. A record that cannot be read becomes a row with the fault `malformed`. Everything
that is left out is counted in `Notices`.
"""

from stages.sources.config import Source, SourceConfig
from stages.sources.dispatch import content_digest, identity, images, pages
from stages.sources.notices import Notices
from stages.sources.reader import Reader
from stages.sources.row import LIST, MALFORMED, Location
from stages.sources.samples import Sample, named, samples
from stages.sources.shards import shards

__all__ = [
    "LIST",
    "MALFORMED",
    "Location",
    "Notices",
    "Reader",
    "Sample",
    "Source",
    "SourceConfig",
    "content_digest",
    "identity",
    "images",
    "named",
    "pages",
    "samples",
    "shards",
]
