"""Tools that decode, measure and compare images."""
