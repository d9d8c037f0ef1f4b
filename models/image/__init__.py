"""Images decoded, measured and compared."""
