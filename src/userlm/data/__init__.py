"""From raw logs to conversations that a user model can learn from: read them (`sources`), choose
(`clean`), and say what each user was after (`intents`). Pure functions; the verbs that call them
are in `commands`."""
