"""What curation means: an Arrow table in, an Arrow table out."""
