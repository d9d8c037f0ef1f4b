"""How dedup compares with its peers; `python -m benchmarks.dedup`."""
