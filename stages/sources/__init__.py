"""Lists of URLs, and images already at hand, to rows: what download is asked to download.

Text is untrusted, and kept as found: what is in no encoding that can be told is refused or counted,
never replaced. A record that cannot be read is a row with the fault `malformed`. Whatever is left
out is counted in `Notices`.
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
