"""What captions and documents are made of: words, scripts, languages, phrases, near copies."""
