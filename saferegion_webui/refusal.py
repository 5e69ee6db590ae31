"""The one exception that ends a generation: a sentence for people, an HTTP status for the API."""

from __future__ import annotations

from saferegion.core.errors import SafeRegionError
from saferegion.guard.enforce import PolicyRefused


class SafeRegionRefused(SafeRegionError):
    """No picture is made. The webui shows the sentence in place of one; its API answers with ``status_code``."""

    def __init__(self, sentence: str, status_code: int = 422) -> None:
        super().__init__(sentence)
        self.status_code = status_code
        self.detail = sentence

    @classmethod
    def of(cls, error: Exception) -> SafeRegionRefused:
        """``error`` as a refusal: what the library refuses keeps its sentence, anything else is an error of ours."""
        if isinstance(error, SafeRegionRefused):
            return error
        if isinstance(error, PolicyRefused):
            return PolicyRefusal(error)
        if isinstance(error, SafeRegionError):
            return cls(f"Safe Region: {error}")
        return cls(
            f"Safe Region could not guard this prompt ({type(error).__name__}: {error}), so no picture was made.", 500
        )


class PolicyRefusal(SafeRegionRefused):
    """No picture is made, by the operator's policy: 403, and ``code`` in the answer of the API."""

    def __init__(self, error: PolicyRefused) -> None:
        super().__init__(str(error), error.status_code)
        self.code, self.contact, self.sentence = error.code, error.contact, error.sentence
