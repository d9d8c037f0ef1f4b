"""The terminal: the commands, their help, and what `init` writes."""
