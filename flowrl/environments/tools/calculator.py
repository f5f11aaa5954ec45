"""A calculator: arithmetic on numbers that a model wrote, worked out from its syntax tree; nothing of it is run."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from flowrl.contracts import ModelsFault

LONGEST = 500  # characters of an expression
DEEPEST = 100  # nested operations
LARGEST = 4096  # bits of a whole number
DIGITS = 12  # significant ones of a number that is not whole
WORDS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})

Number = int | float
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name)
    for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "floor", "ceil")
}
FUNCTIONS |= {"abs": abs, "round": round, "min": min, "max": max, "gcd": math.gcd, "lcm": math.lcm}
CONSTANTS = {"pi": math.pi, "e": math.e}


def calculator(expression: str) -> str:
    """Work out an arithmetic expression, with + - * / // % **, brackets, and functions such as sqrt, log and round.

    Args:
        expression: The expression, such as (3 + 4) * 12 / 7.

    Returns:
        The value: a whole number exactly, any other to 12 significant digits.
    """
    if len(expression) > LONGEST:
        raise ModelsFault(f"the expression has {len(expression)} characters; accepted: at most {LONGEST}")
    try:
        tree = ast.parse(expression.translate(WORDS).strip(), mode="eval").body
        value = _value(tree, 0)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ModelsFault(f"the expression cannot be worked out: {str(error).split(' (<')[0]}") from error
    except (ZeroDivisionError, OverflowError, TypeError) as error:
        raise ModelsFault(f"the expression has no value: {error}") from error
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.{DIGITS}g}"


def _value(node: ast.AST, depth: int) -> Number:
    """The value of a part of the expression. Raises ValueError for what is no arithmetic, or too large."""
    if depth > DEEPEST:
        raise ValueError(f"operations are nested more than {DEEPEST} deep")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _limited(node.value)
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return _limited(OPERATORS[type(node.op)](_value(node.operand, depth + 1)))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        if isinstance(node.op, ast.Pow):
            return _limited(_power(left, right))
        if type(node.op) in OPERATORS:
            return _limited(OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in FUNCTIONS:
            raise ValueError(f"there is no function {node.func.id!r}; accepted: {', '.join(sorted(FUNCTIONS))}")
        return _limited(FUNCTIONS[node.func.id](*(_value(one, depth + 1) for one in node.args)))
    raise ValueError(f"{ast.unparse(node)[:40]!r} is no arithmetic")


def _power(base: Number, exponent: Number) -> Number:
    """base ** exponent, refused before it is worked out where it would be too large."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        if exponent * math.log2(abs(base)) > LARGEST:
            raise ValueError("the power is too large")
    value: Any = base**exponent
    if isinstance(value, complex):
        raise ValueError("a root of a negative number")
    return float(value) if isinstance(value, float) else int(value)


def _limited(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > LARGEST:
        raise ValueError("a number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError("it is not finite")
    return value
