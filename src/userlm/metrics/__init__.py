"""Conversations in, measures out. Logs and simulations go through the same functions: the human row
is free."""
