"""Adapters for the code of others that runs conversations, one file each. Each needs its package
only when it is imported."""
