"""Objectives of training: models with their losses."""
