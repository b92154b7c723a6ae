"""Train a model on conversations: tokenize them, prepare the base model, train, save."""
