"""`capfilt view`: a local page that searches, filters and sorts all rows of a run."""
