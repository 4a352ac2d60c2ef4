"""The ranks of a run and what they exchange."""
