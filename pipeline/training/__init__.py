"""Models trained on curated pairs, and measured."""
