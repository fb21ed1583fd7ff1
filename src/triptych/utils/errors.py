"""Errors in user input; without torch, which is slow to import."""


class UserError(ValueError):
    """Invalid user input; the message is one sentence with the problem and the remedy.

    The command line prints only the message, without a traceback, and exits with status 1.
    """


class ConfigurationError(UserError):
    """A configuration that does not describe a model; the command line exits with status 2."""


class TextError(UserError):
    """A text that cannot be used.

    Args:
        message: sentence for the author of the text.
        reason: predicate of "the caption", equal for all texts with this problem: "holds a NUL".
        detail: further information, not used for counts.
    """

    def __init__(self, message: str, reason: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (str(self), self.reason, self.detail)


class ImageError(ValueError):
    """An image that cannot be used; each caller converts it to its own error.

    Args:
        reason: predicate of "the image", equal for all images with this problem: "is damaged".
        detail: further information, logged and not used for counts.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class NotFiniteError(UserError):
    """A computed result is NaN or infinite; the message names the stage."""
