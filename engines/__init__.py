"""Compile a model bundle into engines for one machine, and hold them against the reference."""
