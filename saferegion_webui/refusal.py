"""The one exception that ends a generation: a sentence for people, an HTTP status for the API."""

from __future__ import annotations

from saferegion.core.errors import SafeRegionError


class SafeRegionRefused(SafeRegionError):
    """No picture is made. The webui shows the sentence in place of one; its API answers with ``status_code``."""

    def __init__(self, sentence: str, status_code: int = 422) -> None:
        super().__init__(sentence)
        self.status_code = status_code
        self.detail = sentence

    @classmethod
    def of(cls, error: Exception) -> SafeRegionRefused:
        """``error`` as a refusal: what the library refuses keeps its sentence, anything else is an error of ours."""
        if isinstance(error, cls):
            return error
        if isinstance(error, SafeRegionError):
            return cls(f"Safe Region: {error}")
        return cls(
            f"Safe Region could not guard this prompt ({type(error).__name__}: {error}), so no picture was made.", 500
        )
