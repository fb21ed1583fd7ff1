"""Errors of the user's input; without torch, which takes seconds to import."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence that names it and the remedy.

    The command line prints only the message, without a traceback, and exits with status 1.
    """


class ConfigurationError(UserError):
    """A configuration that does not describe a model; the command line exits with status 2."""


class TextError(UserError):
    """A text that cannot be used.

    Args:
        message: one sentence for the author of the text.
        reason: follows "the caption", the same for all texts with this fault: "holds a NUL".
        detail: helps to find the cause; not counted.
    """

    def __init__(self, message: str, reason: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (str(self), self.reason, self.detail)


class ImageError(ValueError):
    """An image that cannot be used; each door turns it into its own form.

    Args:
        reason: follows "the image", the same for all images with this fault: "is damaged".
        detail: helps to find the cause; logged, not counted.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


class NotFiniteError(UserError):
    """A computed result is NaN or infinite; the message names the stage."""
