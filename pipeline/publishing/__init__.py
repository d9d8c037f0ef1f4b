"""Publishing an export: the Hugging Face hub, and Croissant metadata."""
