"""What the user got wrong; apart from `contracts`, as torch takes seconds to import."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """


class NotFiniteError(UserError):
    """What a model computed is NaN or infinite; the message names the stage."""
