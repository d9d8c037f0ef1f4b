"""Worlds, servers and models that the tests share."""
