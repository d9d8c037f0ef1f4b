"""Models run in batches: captioners, matchers, dual encoders and language models that see."""
