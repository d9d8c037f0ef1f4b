"""Lists of URLs, and images already at hand, to rows: what download is asked to download.

Text is untrusted: what is not UTF-8, and lone surrogates, become U+FFFD; all else is as found. A
record that cannot be read is a row with an empty URL, which download rejects as `bad_url`.
"""

from stages.sources.config import Source, SourceConfig
from stages.sources.cutter import shards
from stages.sources.formats import content_digest, identity, images, pages
from stages.sources.reader import Reader
from stages.sources.row import LIST, Location

__all__ = [
    "LIST",
    "Location",
    "Reader",
    "Source",
    "SourceConfig",
    "content_digest",
    "identity",
    "images",
    "pages",
    "shards",
]
