"""The YAML of experiment files: numbers as YAML 1.2 has them, no key twice, faults with their line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gaeanet.errors import RequestError, reason


class Loader(yaml.SafeLoader):
    """YAML whose `3e-5` is a number, as YAML 1.2 has it, and which refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def parse(text: str, origin: str) -> Any:
    """What a text says; `origin` is what messages call it. Raises `RequestError` where it is not valid YAML."""
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RequestError(f"{origin}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RequestError(f"{origin}: not valid YAML: {reason(error)}") from None
