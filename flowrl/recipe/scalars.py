"""YAML as recipes are read and written: the scalars of the YAML 1.2 core schema, keys once, few levels, few values.

`014` is 14 and `0o14` is 12, `1e-4` is a float; `1:12`, `1_000`, `0b1`, `yes`, `off` and `2026-01-01` are texts
(YAML 1.2.2, section 10.3.2). What is written here reads back equal here and under YAML 1.1.
"""

import re

import yaml
from yaml.composer import ComposerError

from flowrl.untyped import JSON

MAX_DEPTH = 32  # levels of mappings and lists; the deepest key of a recipe has five
MAX_VALUES = 100_000  # what stands behind an alias is counted wherever it is named: ten lines could stand for 10**9
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
# tag, pattern, the characters that such a scalar may begin with; an integer is tried before a float
_CORE = (
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", re.compile(r"^(?:<<)$"), ["<"]),
)


class Loader(yaml.SafeLoader):
    """See the module's docstring."""

    yaml_implicit_resolvers: dict = {}  # none of YAML 1.1's

    def compose_node(self, parent: yaml.Node | None, index: JSON) -> yaml.Node | None:
        """A node of at most MAX_DEPTH levels and MAX_VALUES values, aliases written out."""
        mark = self.peek_event().start_mark
        alias = self.check_event(yaml.AliasEvent)
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > MAX_DEPTH:
            raise ComposerError(None, None, f"more than {MAX_DEPTH} levels", mark)
        node: JSON = super().compose_node(parent, index)
        self._depth -= 1
        if alias and not hasattr(node, "extent"):
            raise ComposerError(None, None, "an alias of what it stands in", mark)
        if not alias:
            node.extent = _extent(node)
        levels, values = node.extent
        if self._depth + levels > MAX_DEPTH:
            raise ComposerError(None, None, f"more than {MAX_DEPTH} levels", mark)
        if values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, those behind aliases counted wherever they are named"
            raise ComposerError(None, None, problem, mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping whose keys are distinct plain names, texts whatever they look like."""
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value in seen:
                key = f"{name.value[:60]!r}" if isinstance(name, yaml.ScalarNode) else "in brackets"
                problem = f"key {key} is given twice or is no plain name"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
            name.tag = name.tag if name.tag == _MERGE else _TAG + "str"
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Decimal, 0o octal or 0x hexadecimal."""
        text = str(node.value)
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:  # Python reads no more digits than sys.get_int_max_str_digits()
            problem = f"a whole number of {len(text)} digits"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _extent(node: yaml.Node) -> tuple[int, int]:
    """(levels, values) of a node whose children are measured."""
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    parts: list[JSON] = (
        [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    )
    return 1 + max((p.extent[0] for p in parts), default=0), 1 + sum(p.extent[1] for p in parts)


class Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else."""


for _name, _pattern, _first in _CORE:
    Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)
Loader.add_constructor(_TAG + "int", Loader.construct_integer)


def read(text: str) -> JSON:
    """The value that a YAML text stands for. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader)
    except RecursionError:  # brackets are counted before nodes are composed
        raise yaml.YAMLError(f"more than {MAX_DEPTH} levels") from None


def write(values: JSON) -> str:
    """YAML of plain values, in their order."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)
