"""The models that play users, assistants and judges. Each has one or more of three protocols (see
`types`): `Chat`, `Complete` and `Score`. A local model has all three, an endpoint chats, and a
script says the lines that it was given."""
