"""What is trained: models with their losses."""
