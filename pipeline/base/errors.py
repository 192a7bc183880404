"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something that the user must change: a config, a file, a path, a number of ranks.

    The message says what is wrong, with the value, what is allowed and what to do. The command line prints it
    without a traceback and exits with status 2; any other exception is a bug (status 1).
    """
