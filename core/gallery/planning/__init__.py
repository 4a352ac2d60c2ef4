"""The plan of an upgrade: every road measured on a sample, what each costs, which to take, and the report."""
