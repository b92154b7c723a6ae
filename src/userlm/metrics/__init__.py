"""Measures of conversations. Logs and simulations go through the same functions, so every metric
has a human reference."""
