"""What a generation may paint from; see :mod:`saferegion.guard.watch`."""

from saferegion.guard.watch import Watch, away_of

__all__ = ["Watch", "away_of"]
