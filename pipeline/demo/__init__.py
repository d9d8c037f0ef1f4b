"""The embedded default: a drawn web with known truth, served on loopback."""
