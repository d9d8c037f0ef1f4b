"""Models run in batches: captioners, matchers, dual encoders and vision-language models."""
