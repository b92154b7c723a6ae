"""From conversations to a trained checkpoint: tokenize, prepare a base model, train, write the card."""
