"""From raw logs to conversations that a user model can learn from.

`layouts` reads them, `filters` and `split` choose, `intents` says what each user is after. The
functions are pure; the verbs that call them are in `commands`.
"""
