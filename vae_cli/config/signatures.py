"""What a part's own source says of it: the types of its settings, and its facts. Read, never imported: no torch.

A target `package.module.Name` is found as a file, its class or function in the syntax tree, its constructor there or
in a base class. So a user's own part is checked like ours, and a mistake is reported in a fraction of a second.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vae_cli.config import types

ROOT = Path(__file__).parents[2]  # of our own modules, wherever Python was started
DEPTH = 8  # names and base classes that are followed, one from another
FACTS = ("gives", "needs", "refuses", "ignores")  # class attributes: see `rules`
NAMES: dict[str, Any] = {
    **{name: value for name, value in vars(types).items() if not name.startswith("_")},
    **{"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "tuple": tuple},
    **{"Sequence": list, "Any": Any, "Literal": Literal, "Annotated": Annotated, "Field": Field, "None": None},
    "__builtins__": {},
}


@dataclass(frozen=True)
class Parameter:
    """One named argument of a constructor or function."""

    type: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    """What the source of a part says of it.

    Attributes:
        parameters: its named arguments.
        facts: what it gives, needs, refuses and ignores.
        closed: whether it takes no other arguments; False too where its source cannot be read.
    """

    parameters: dict[str, Parameter] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    closed: bool = False


@cache
def signature(target: str) -> Signature:
    """Return the signature of a class or function `package.module.Name`; an open one where its source is not found."""
    found = _find(target)
    if found is None:
        return Signature()
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    classes = list(_with_bases(module, node))
    facts: dict[str, Any] = {}
    for each in reversed(classes):  # a class's own facts stand in place of its base's
        facts |= _facts(each)
    init = next(filter(None, map(_init, classes)), None)
    own = Signature(closed=True) if init is None else _of_function(init, skip=1)
    return Signature(own.parameters, facts, own.closed)


@dataclass(frozen=True)
class _Module:
    """A module's source."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree; an empty one where it has no valid syntax, which importing it will tell."""
        try:
            return ast.parse(self.path.read_bytes())
        except (OSError, ValueError, SyntaxError, RecursionError):
            return ast.Module([], [])

    def defined(self, name: str) -> ast.ClassDef | ast.FunctionDef | None:
        """Return the class or function that it defines under a name."""
        kinds = (ast.ClassDef, ast.FunctionDef)
        return next((each for each in self.tree.body if isinstance(each, kinds) and each.name == name), None)

    def imported(self, name: str) -> str | None:
        """Return the full name of what it imports under a name."""
        for each in ast.walk(self.tree):
            if not isinstance(each, ast.Import | ast.ImportFrom):
                continue
            for alias in each.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    return self._full(each, alias)
        return None

    def _full(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
        if isinstance(node, ast.Import):
            return alias.name if alias.asname else alias.name.partition(".")[0]
        above = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        for _ in range(node.level - 1):
            above = above.rpartition(".")[0]
        return ".".join(filter(None, [above if node.level else "", node.module, alias.name]))


@cache
def _module(name: str) -> _Module | None:
    for root in (str(ROOT), *sys.path):
        stem = Path(root or ".", *name.split("."))
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if path.is_file():
                return _Module(name, path)
    return None


def forget() -> None:
    """Read sources anew: the folders where modules are found have changed."""
    signature.cache_clear()
    _module.cache_clear()


def _find(target: str, depth: int = DEPTH) -> tuple[_Module, ast.ClassDef | ast.FunctionDef] | None:
    """Return where a class or function is defined, through the modules that merely import it."""
    where, _, name = target.rpartition(".")
    module = _module(where) if where else None
    if module is None:
        return None
    if (node := module.defined(name)) is not None:
        return module, node
    other = module.imported(name)
    return _find(other, depth - 1) if other and other != target and depth else None


def _with_bases(module: _Module, node: ast.ClassDef, depth: int = DEPTH) -> Iterator[ast.ClassDef]:
    """Yield a class, then its base classes as far as their sources are found; torch's Module says nothing to us."""
    yield node
    for base in node.bases if depth else ():
        name = ast.unparse(base)
        if name.rpartition(".")[2] in ("Module", "ABC", "object", "Generic", "Protocol"):
            continue
        if (local := module.defined(name)) is not None:
            found: tuple[_Module, Any] | None = (module, local)
        else:
            head, dot, rest = name.partition(".")
            found = _find(f"{module.imported(head) or head}{dot}{rest}")
        if found is not None and isinstance(found[1], ast.ClassDef):
            yield from _with_bases(found[0], found[1], depth - 1)


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)


def _of_function(node: ast.FunctionDef, skip: int) -> Signature:
    """Return the signature of a function, less its first arguments that are not named (`self`)."""
    positional = [*node.args.posonlyargs, *node.args.args][skip:]
    first_default = len(positional) - len(node.args.defaults)
    found = {each.arg: Parameter(_type(each.annotation), k < first_default) for k, each in enumerate(positional)}
    for each, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        found[each.arg] = Parameter(_type(each.annotation), default is None)
    return Signature(found, closed=node.args.kwarg is None)


def _type(annotation: ast.expr | None) -> Any:
    """Return the type that an annotation names, where it is one of `types`; else any."""
    if annotation is None:
        return Any
    try:
        return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), dict(NAMES))
    except Exception:  # a Tensor, a Callable, a class of the user's own
        return Any


def _facts(node: ast.ClassDef) -> dict[str, Any]:
    """Return the facts that a class states, plain values all."""
    found = {}
    for each in node.body:
        named = each.targets[0] if isinstance(each, ast.Assign) else getattr(each, "target", None)
        if isinstance(named, ast.Name) and named.id in FACTS and getattr(each, "value", None) is not None:
            with suppress(ValueError):
                found[named.id] = ast.literal_eval(each.value)  # type: ignore[attr-defined]
    return found
