"""From raw logs to conversations that a user model can learn from.

`layouts` reads logs, `filters` and `split` select conversations, `intents` states what each user
wants. The functions are pure; the verbs that call them are in `commands`.
"""
