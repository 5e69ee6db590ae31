"""What reading a text encoder refuses with, and the one place that imports transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from saferegion.core.errors import SafeRegionError


class EncoderError(SafeRegionError):
    """A text encoder that cannot be read: not there, not one, incomplete, or of a family that is not known."""


def transformers() -> ModuleType:
    """The transformers package. Raises EncoderError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise EncoderError("Reading a text encoder needs transformers: pip install 'saferegion[demo]'.") from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' load reports and progress bars off the terminal; what matters is raised."""
    log = transformers().logging
    level, bars = log.get_verbosity(), getattr(log, "is_progress_bar_enabled", lambda: True)()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's text, without a final full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
