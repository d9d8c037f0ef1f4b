"""A run on disk or in object storage: files are written whole or not at all."""
