"""Every error that a user can meet by their own doing; each knows its exit code, and its text is all they need.

A message says what was given, what is allowed, and what to do next. The commands print it without a traceback.
"""


class LossoptError(Exception):
    """Base of the errors below; takes exactly one string, so that data-loading workers can pass it on."""

    exit_code = 1


class ConfigError(LossoptError):
    """The configuration asks for something that cannot work (a misspelt name, an impossible combination)."""

    exit_code = 2


class DataError(LossoptError):
    """The data is missing, unreadable, or breaks a rule that the run depends on."""

    exit_code = 3


class NonFiniteError(LossoptError):
    """A NaN or an infinity was about to reach the weights; it has not."""

    exit_code = 4


class EvaluationError(LossoptError):
    """No number can be given for this evaluation (no valid query, NaN embeddings, an empty gallery)."""

    exit_code = 5


class Terminated(SystemExit):
    """SIGTERM has ended a run. No `LossoptError`, so that nothing which outlives errors goes on."""

    exit_code = 143

    def __init__(self) -> None:
        super().__init__(self.exit_code)
