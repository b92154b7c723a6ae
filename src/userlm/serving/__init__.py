"""A simulated user as an OpenAI-compatible server. `userlm serve` runs it."""
