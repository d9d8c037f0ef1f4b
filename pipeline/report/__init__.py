"""The quality report of a run: what was dropped, why, with examples, and what came out."""
