"""The layer that knows Ray, files, manifests and the terminal."""
