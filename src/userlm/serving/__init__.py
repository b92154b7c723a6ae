"""A simulated user as an OpenAI-compatible server. `userlm serve` runs it.

`schema` says what requests and answers are, `messages` turns a request into a conversation
(`prompts` finds those that are none, `intents` the intent, `endings` the stop phrase, `forms` which
form the answer should have), `intent_writer` has a model write the intent if there is none,
`answers` samples the user's turn and formats the answer, and `responses` is another form of the
same API. `access` says who may call, `connections` how long a client may take, and `app` is the
server. `playground` adds the pages, `blind` makes the pairs of their test, and `saved` writes for
them.
"""
