"""The error a user can do something about."""


class UserError(Exception):
    """One line that names the argument or file, what was expected and what came.

    The command line prints it without a traceback and exits with status 2.
    """
