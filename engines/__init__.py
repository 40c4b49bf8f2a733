"""Compile a model bundle into an engine for one machine."""
