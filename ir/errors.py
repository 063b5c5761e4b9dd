"""What planish raises for the user: every message is one line that says what is wrong and where."""

from __future__ import annotations

__all__ = ["ModelError", "PlanishError"]


class PlanishError(Exception):
    """Base of the errors that concern the user rather than a bug: bad input, a missing package, a full disk."""


class ModelError(PlanishError):
    """The model is malformed, or uses something that planish does not read."""
