"""The error that policies raise."""

from flowrl.names import UserError


class PolicyError(UserError):
    """A model cannot be used as a policy, or was used wrongly. One line: what, where, why, and what to do."""
