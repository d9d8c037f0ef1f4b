"""The results of a run: verdicts, funnel, one sample, verification. Writes no annotations."""
