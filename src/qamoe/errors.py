"""The one exception that reaches a person as a sentence instead of a traceback."""


class Refused(Exception):
    """Input that cannot be used; the message says what was seen, what is allowed and where, in one sentence."""
