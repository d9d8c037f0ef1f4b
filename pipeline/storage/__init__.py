"""A run on disk or object storage: files that are written whole or not at all, and its lock."""
