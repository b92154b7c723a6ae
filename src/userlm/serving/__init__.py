"""A simulated user as an OpenAI-compatible server. `userlm serve` runs it.

`schema` says what requests and answers are, `messages` turns a request into a conversation,
`answers` samples the user's turn and formats the answer, and `app` is the server.
"""
