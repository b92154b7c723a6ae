"""The models that play users, assistants and judges. Each has one or more of three protocols (see
`types`): `Chat`, `Complete` and `Score`. A local model has all three; an endpoint and a script only
chat."""
