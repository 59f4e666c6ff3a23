"""Configuration values that are computed from other values: `"memory": cores*4000`.

Owns the small language of published configuration files: JSON, plus names of other keys and arithmetic in place of a
value. Nothing is executed: the text is parsed and only the node kinds below are walked. Must not know which keys
exist.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping

from taskvine_core.errors import ConfigError

_CONSTANTS: dict[str, object] = {"true": True, "false": False, "null": None}
_MAX_DEPTH = 50


def parse(text: str) -> dict[str, object]:
    """Read one object of keys and values, computing what is an expression.

    Raises:
        ConfigError: not an object, an unknown name, a circular reference, or anything that is not arithmetic.
    """
    try:
        plain = json.loads(text)
    except ValueError as problem:
        return _computed(text, problem)
    if not isinstance(plain, dict):
        raise ConfigError("the configuration is not a JSON object", hint='expected {"key": value, ...}')
    return plain


def _computed(text: str, json_problem: ValueError) -> dict[str, object]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"not JSON: {json_problem}") from json_problem
    if not isinstance(tree, ast.Dict):
        raise ConfigError("the configuration is not a JSON object", hint='expected {"key": value, ...}')
    nodes: dict[str, ast.expr] = {}
    for key, value in zip(tree.keys, tree.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise ConfigError(f"not JSON: {json_problem}")
        nodes[key.value] = value
    return {key: _value(node, nodes, 0) for key, node in nodes.items()}


def _value(node: ast.expr, scope: Mapping[str, ast.expr], depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise ConfigError("the values refer to each other in a circle")
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int | float)):
        return node.value
    if isinstance(node, ast.Name):
        if node.id in _CONSTANTS:
            return _CONSTANTS[node.id]
        if node.id not in scope:
            raise ConfigError(f"unknown name {node.id!r}", hint="only other keys of the file can be named")
        return _value(scope[node.id], scope, depth + 1)
    if isinstance(node, ast.List):
        return [_value(item, scope, depth + 1) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, scope, depth)
    if isinstance(node, ast.BinOp):
        return _arithmetic(node, scope, depth)
    raise ConfigError(f"{ast.unparse(node)[:60]!r} is not a value", hint="numbers, texts, other keys and + - * / only")


def _arithmetic(node: ast.BinOp, scope: Mapping[str, ast.expr], depth: int) -> int | float:
    left, right = _number(node.left, scope, depth), _number(node.right, scope, depth)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    if isinstance(node.op, ast.Div):
        if right == 0:
            raise ConfigError(f"{ast.unparse(node)[:60]!r} divides by zero")
        return left / right
    raise ConfigError(f"{ast.unparse(node)[:60]!r} is not + - * or /")


def _number(node: ast.expr, scope: Mapping[str, ast.expr], depth: int) -> int | float:
    value = _value(node, scope, depth + 1)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{ast.unparse(node)[:60]!r} is not a number")
    return value
