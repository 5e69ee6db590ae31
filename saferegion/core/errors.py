"""Every refusal of this package is one of these; each message is one sentence that says what to do."""

from __future__ import annotations


class SafeRegionError(ValueError):
    """Base class: whatever cannot be guarded, read or trusted is refused with this."""


class ConditioningError(SafeRegionError):
    """A conditioning that cannot be guarded (shape, dtype, non-finite values, wrong width)."""


class EncoderMismatchError(SafeRegionError):
    """A direction meets the embedding space of another text encoder."""


class DirectionFileError(SafeRegionError):
    """A direction file that cannot be trusted."""


class RecipeError(SafeRegionError):
    """A recipe that does not describe a concept."""


class CompileError(SafeRegionError):
    """A recipe that does not separate on this encoder, or an encoder that returns what cannot be fitted."""


class NotSeparableError(CompileError):
    """A recipe whose unsafe and safe prompts this encoder does not tell apart: it does not know the words."""


class DiscoverError(SafeRegionError):
    """A diffusion model, recipe or prompts through which nothing can be discovered."""


class BalanceError(SafeRegionError):
    """Shares, axes or prompts that cannot be balanced as asked."""


class UnresolvedError(SafeRegionError):
    """A prompt that stayed outside the safe region after all that was done to bring it inside."""


class PolicyError(SafeRegionError):
    """An operator's policy that cannot be read or trusted; nothing is painted under it."""


class AuditError(SafeRegionError):
    """An audit log that cannot be written, or that somebody has changed."""
