"""Review by hand: pairs on a local page, decisions in a file, agreement with the filter."""
