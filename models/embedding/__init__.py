"""Embeddings of images and texts: heads, cells, copies, selection and search, on plain arrays."""
