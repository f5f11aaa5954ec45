"""The keys of `advantage`: how rewards become advantages."""

from collections.abc import Mapping
from typing import ClassVar

from flowrl.recipe.base import key, part
from flowrl.recipe.keys.credit import Credit, CreditKeys
from flowrl.recipe.keys.environment import EarlyCall
from flowrl.recipe.sections import Own, arguments_of, defaults_of
from flowrl.untyped import JSON


class Advantage(arguments_of("advantage", "normalised")):
    """The arguments of flowrl.core.advantages.combined.advantages, which explains them. credit: how a sample's reward
    reaches its decisions, a mapping with kind (recipe/keys/credit.py); a text is short for {kind: text}. early: right
    conversations are worth more, or less, the earlier they call a tool first (recipe/keys/environment.py)."""

    credit: Credit = part(CreditKeys)
    early: EarlyCall | None = key(None, "a mapping with delta, limit and right, or null")


class OwnAdvantage(Own):
    """Advantages by a function of the user's own (flowrl/parts.py)."""

    part: ClassVar[str] = "advantage"
    beside: ClassVar[Mapping[str, JSON]] = defaults_of(Advantage) | {
        "baseline": "none",
        "scale": "none",
        "credit": CreditKeys(),
    }
