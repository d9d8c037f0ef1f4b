"""The demo: a drawn web with known ground truth, served on loopback."""
