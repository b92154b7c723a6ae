"""Runs code that a model wrote against tests, without trusting it: see docs/sandbox.md."""
