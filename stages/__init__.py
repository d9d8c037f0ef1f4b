"""Curation stages, which turn Arrow tables into Arrow tables and do not depend on Ray."""
