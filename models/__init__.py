"""Neural and linguistic models and tools, which do not depend on Ray or stages."""
