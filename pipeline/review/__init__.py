"""Manual review: shows pairs on a local page, stores decisions, and measures agreement."""
