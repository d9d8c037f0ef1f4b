"""What a run has found: verdicts, funnel, one sample, verification. Writes no stage."""
