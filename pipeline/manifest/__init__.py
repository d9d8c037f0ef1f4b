"""The YAML recipe and what follows from it. Reads no run, and nothing on disk but the recipe."""
