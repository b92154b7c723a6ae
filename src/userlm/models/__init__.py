"""Models: what turns messages or token ids into words. Three one-method protocols (see `types`):
`Chat`, `Complete` and `Score`. A local model has all three; an endpoint chats; a script says what
it was given."""
