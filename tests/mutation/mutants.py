"""The mutants of a module: each is its source with one small mistake in it.

The mistakes are mutmut's, and five kinds more that a state machine invites: another member of an enumeration, another
value of the same table, a condition that always or never holds, and half of an `and` or `or`. mutmut itself can't run
them here: it mutates what is inside functions alone, and the fence is a table.

Left out is what no test should care about: annotations, type variables, unions of types, decorators, loggers and what
is logged, the texts of assertions and of exceptions, and the names of tasks and threads. Responsible for the text of
mutants, not for running them.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import libcst as cst
from mutmut.mutation.mutators import mutation_operators, operator_if_exp

from tests.mutation.verdict import Mutant

Operator = Callable[[Any], Iterator[cst.CSTNode]]
Operators = Sequence[tuple[type, Operator]]


def mutants(path: Path, members: Mapping[str, Sequence[str]]) -> list[Mutant]:
    """All mutants of the file; `members` are those of the enumerations that it uses."""
    source = path.read_text(encoding="utf-8")
    operators = [*mutation_operators, *_OPERATORS, (cst.Attribute, _other_member(members))]
    found: dict[str, Mutant] = {}
    module = cst.parse_module(source)
    written = [module.code_for_node(statement) for statement in module.body]
    end = source.index("".join(written))
    for statement, code in zip(module.body, written, strict=True):
        before, after = source[:end], source[end + len(code) :]
        end += len(code)
        for mutated, within in _mutated(statement, operators):
            text = before + module.code_for_node(mutated) + after
            if text != source and text not in found:
                found[text] = _mutant(source, text, within)
    return list(found.values())


def members(*paths: Path) -> dict[str, list[str]]:
    """The enumerations of these files: name → members."""
    classes = [
        node for path in paths for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    return {
        each.name: [ast.unparse(line.targets[0]) for line in each.body if isinstance(line, ast.Assign)]
        for each in classes
        if "StrEnum" in map(ast.unparse, each.bases)
    }


def _mutated(statement: cst.CSTNode, operators: Operators) -> Iterator[tuple[cst.CSTNode, str]]:
    """The mutants of a statement: (the statement, name of the function or class)."""
    visitor = _Visitor(operators)
    statement.visit(visitor)
    for node, mutated, unit, within in visitor.found:
        if unit is None:
            yield statement.deep_replace(node, mutated), within
        else:  # a replacement in a whole class takes long
            unit_mutated = unit.deep_replace(node, mutated)
            assert isinstance(statement, cst.ClassDef)
            body = [unit_mutated if each is unit else each for each in statement.body.body]
            yield statement.with_changes(body=statement.body.with_changes(body=body)), within


class _Visitor(cst.CSTVisitor):
    """Collects the mutants of a statement: (node, its mutant, the method around it, the names around it)."""

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, cst.FunctionDef | None, str]] = []
        self._operators = operators
        self._within: list[cst.FunctionDef | cst.ClassDef] = []
        self._texts: set[cst.CSTNode] = set()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator) or node in self._texts or _is_told(node):
            return False
        if isinstance(node, cst.Assign) and _is_union(node.value):
            return False
        if isinstance(node, cst.Assert) and node.msg is not None:
            self._texts.add(node.msg)
        texts = _texts_of(node)
        self._texts.update(texts)
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._within.append(node)
        for kind, operator in self._operators:
            for mutated in operator(node) if isinstance(node, kind) else ():
                if not texts or _keeps(mutated, texts):
                    self.found.append((node, mutated, self._method, ".".join(each.name.value for each in self._within)))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._within.pop()

    @property
    def _method(self) -> cst.FunctionDef | None:
        match self._within:
            case [cst.ClassDef(), cst.FunctionDef() as method, *_]:
                return method
        return None


TEXTS: Final = (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString)
NOT_MUTATED: Final = {"TypeVar", "ParamSpec", "getLogger"}


def _is_told(node: cst.CSTNode) -> bool:
    """A call that only people read (`log.…`), or only mypy."""
    match node:
        case cst.Call(func=cst.Attribute(value=cst.Name("log"))):
            return True
        case cst.Call(func=cst.Name(name)) | cst.Call(func=cst.Attribute(attr=cst.Name(name))):
            return name in NOT_MUTATED
    return False


def _is_union(node: cst.CSTNode) -> bool:
    """A type by another name, `A | B`, which mypy alone reads; constants are written in capitals."""
    match node:
        case cst.BinaryOperation(left=left, operator=cst.BitOr(), right=cst.Name(name)):
            return name[0].isupper() and not name.isupper() and (isinstance(left, cst.Name) or _is_union(left))
    return False


def _texts_of(node: cst.CSTNode) -> list[cst.Arg]:
    """The arguments of a call that only people read: the text of an exception, the name of a task or thread."""
    if not isinstance(node, cst.Call):
        return []
    match node.func:
        case cst.Name(name) | cst.Attribute(attr=cst.Name(name)):
            pass
        case _:
            return []
    return [
        arg
        for arg in node.args
        if isinstance(arg.value, TEXTS)
        and (name.endswith("Error") or (arg.keyword is not None and arg.keyword.value == "name"))
    ]


def _keeps(mutated: cst.CSTNode, args: list[cst.Arg]) -> bool:
    return not isinstance(mutated, cst.Call) or all(any(each is arg for each in mutated.args) for arg in args)


def _mutant(source: str, mutated: str, within: str) -> Mutant:
    old, new = source.splitlines(), mutated.splitlines()
    head = _alike(old, new)
    tail = _alike(old[head:][::-1], new[head:][::-1])
    was, becomes = (_on_one_line(lines[head : len(lines) - tail]) for lines in (old, new))
    return Mutant(within, was, becomes, head + 1, mutated)


def _alike(some: list[str], others: list[str]) -> int:
    """How many lines at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _on_one_line(lines: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


# --- operators of our own ----------------------------------------------------------------------------------------


def _forced(node: cst.If | cst.CompIf) -> Iterator[cst.CSTNode]:
    """mutmut's way with `a if b else c`, for statements and comprehensions: the condition never or always holds."""
    for ternary in operator_if_exp(cst.IfExp(test=node.test, body=cst.Name("a"), orelse=cst.Name("b"))):
        yield node.with_changes(test=ternary.test)


def _halves(node: cst.BooleanOperation) -> Iterator[cst.CSTNode]:
    for half in (node.left, node.right):
        yield half.with_changes(lpar=[*node.lpar, *half.lpar], rpar=[*half.rpar, *node.rpar])


def _other_member(members: Mapping[str, Sequence[str]]) -> Operator:
    """`Decision.CONFIRM` becomes the member after it."""

    def operator(node: cst.Attribute) -> Iterator[cst.CSTNode]:
        if isinstance(node.value, cst.Name) and node.attr.value in (names := members.get(node.value.value, ())):
            after = names[(names.index(node.attr.value) + 1) % len(names)]
            yield node.with_changes(attr=cst.Name(after))

    return operator


def _other_value(node: cst.Dict) -> Iterator[cst.CSTNode]:
    """A value of a table becomes each other that the table has; where lines are tuples, each other of its column."""
    code = cst.Module([]).code_for_node
    lines = [element for element in node.elements if isinstance(element, cst.DictElement)]
    for line in lines:
        if not isinstance(line.value, cst.Tuple):
            others = {code(each.value): each.value for each in lines}
            for text, other in others.items():
                if text != code(line.value):
                    yield node.deep_replace(line.value, other)
            continue
        for column, cell in enumerate(line.value.elements):
            others = {code(each.value.elements[column].value): each.value.elements[column].value for each in lines}
            for text, other in others.items():
                if text != code(cell.value):
                    yield node.deep_replace(cell, cell.with_changes(value=other))


_OPERATORS: Final[Operators] = [
    (cst.If, _forced),
    (cst.CompIf, _forced),
    (cst.BooleanOperation, _halves),
    (cst.Dict, _other_value),
]
