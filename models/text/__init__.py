"""Tools for captions and documents: words, scripts, languages, phrases, near duplicates."""
