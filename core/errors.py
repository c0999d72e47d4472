"""The exceptions Puna raises on purpose, sorted by who can act on them. Anything else that escapes is a bug.

The HTTP layer maps these classes to status codes in one place; nothing in the core knows HTTP.
"""


class Failure(Exception):
    """Base of every error raised on purpose."""


class BadRequest(Failure):
    """The caller can mend it; unchanged, it fails again."""


class NotFound(BadRequest):
    """The caller named a model, blob or file that does not exist."""


class Unsupported(BadRequest):
    """The request is well-formed but asks for something this model or this version cannot do."""


class ContextTooLong(BadRequest):
    """The prompt has more tokens than the context holds and the caller forbade truncation."""

    def __init__(self, *, tokens: int, limit: int) -> None:
        super().__init__(f"the input length exceeds the context length ({tokens} tokens, the limit is {limit})")
        self.tokens, self.limit = tokens, limit


class BadSetting(Failure):
    """An environment variable holds a value that is not allowed."""

    def __init__(self, *, name: str, value: str, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed: expected {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


class BadModel(Failure):
    """A model file or its plugin is wrong; no request to the model can succeed."""


class BadFile(BadModel):
    """Bytes on disk do not follow their format. Names the file, what was found and what was expected."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class Busy(Failure):
    """The machine is full; the same request may succeed later."""


class RunnerDied(Failure):
    """The runner of a model ended while it had requests; the next request starts a new one."""
