"""Who imports whom, read from the source: imports at the top of a file, inside functions, and for types alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One line of a file that imports `target`: a module of ours, or the full name of something else."""

    source: str
    target: str
    line: int
    how: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}, imports {self.target}{self.how}"


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Files by module name; an `__init__.py` is its package."""
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    files += [path for package in packages if (path := root / f"{package}.py").is_file()]
    return {".".join(p for p in path.relative_to(root).with_suffix("").parts if p != "__init__"): path for path in files}


def imports(files: Mapping[str, Path]) -> list[Import]:
    """All imports of the files."""
    found = []
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        for node, how in _nodes(tree, ""):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            targets = dict.fromkeys(_target(target, files) for target in _names(node, package, files))
            found += [Import(name, target, node.lineno, how) for target in targets if target != name]
    return found


def circles(edges: list[Import]) -> list[list[Import]]:
    """Shortest circles first, until none is left without an import of an earlier one: about as many as have to be broken."""
    found, left = [], list(edges)
    while True:
        out: dict[str, list[Import]] = {}
        for edge in left:
            out.setdefault(edge.source, []).append(edge)
        paths = [[edge, *path] for edge in left if (path := _shortest(out, edge.target, edge.source)) is not None]
        if not paths:
            return found
        found.append(min(paths, key=len))
        left = [edge for edge in left if edge not in found[-1]]


def _shortest(out: Mapping[str, list[Import]], start: str, goal: str) -> list[Import] | None:
    """The fewest imports that lead from `start` to `goal`."""
    reached: dict[str, list[Import]] = {start: []}
    queue = [start]
    for name in queue:
        if name == goal:
            return reached[name]
        for edge in out.get(name, []):
            if edge.target not in reached:
                reached[edge.target] = [*reached[name], edge]
                queue.append(edge.target)
    return None


def _nodes(node: ast.AST, how: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """All import statements, and how each one imports."""
    for child in ast.iter_child_nodes(node):
        inside = how
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = " inside a function"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = " for types"
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, how
        yield from _nodes(child, inside)


def _names(node: ast.Import | ast.ImportFrom, package: str, files: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    for alias in node.names:
        yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in files else base


def _target(name: str, files: Mapping[str, Path]) -> str:
    """The file that has `name`, or `name` itself where it isn't ours."""
    parts = name.split(".")
    return next((short for n in range(len(parts), 0, -1) if (short := ".".join(parts[:n])) in files), name)
