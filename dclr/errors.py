"""What a user did wrong, said once and clearly: one line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in what the user gave. The message names the file, flag or value, what was expected and the way out."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an :class:`InputError` into one line on standard error and exit code 2; any other error stays a bug."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
