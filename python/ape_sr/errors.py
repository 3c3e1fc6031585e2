"""The error a user can do something about."""

from collections.abc import Generator
from contextlib import contextmanager


class UserError(Exception):
    """One line that names the argument or file, what was expected and what came.

    The command line prints it without a traceback and exits with status 2.
    """


@contextmanager
def memory_for(name: object) -> Generator[None, None, None]:
    """A UserError, which names the file, where the memory does not suffice, on whatever device."""
    try:
        yield
    except MemoryError:
        raise UserError(f"{name}: too large for the memory there is") from None
    except RuntimeError as error:
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        raise UserError(f"{name}: too large for the memory there is") from None
