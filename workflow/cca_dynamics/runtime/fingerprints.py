"""What code does a stage of the workflow depend on?

Snakemake sees a shell command, not the Python functions behind it. Listing whole modules as rule inputs would rerun a
night of training because a comment or a plot in the same file changed. Here a stage is fingerprinted instead: starting
from its entry functions, every definition of this package that they name, directly or through others, is collected from
the syntax tree and hashed without comments, docstrings or layout. Rules pass the fingerprint as `params: code=`, so

- editing a comment, a docstring or the formatting reruns nothing;
- editing a plot reruns plots, editing CCA reruns what follows CCA, and neither retrains a network;
- in a registry (a module-level dict literal, such as `MEASURES`) only the entries named in the config count, so
  adding a dataset, network or measure reruns nothing;
- the schema of the config (the room `config`) does not count, because a stage sees nothing of it but values, which
  stand in its params: a new key, bound or description reruns nothing.

Nothing is imported or executed, so this costs milliseconds when the DAG is built. A name that is only looked up at run
time (`getattr`) is invisible here; the package avoids that across modules. Methods are seen because the class is named,
be it in a type hint.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cca_dynamics.errors import UserError

PACKAGE = Path(__file__).parents[1]
TEXTS = PACKAGE / "report"
"""Holds the captions of the figures, captions/*.rst, and the template of the page, template.html."""
SCHEMA = "config"
"""The room whose definitions are types of values, not code that a stage runs."""


def code_fingerprint(
    *entries: str, selected: Iterable[str] = (), collect: dict[tuple[str, str], str] | None = None
) -> str:
    """Hash of all code of this package that the entries depend on.

    Args:
        entries: "module:name" relative to the package, e.g. "training.classifiers:train" or "results.width:plot".
        selected: registry keys in use. In a dict literal that has any of these keys, the other entries are ignored.
        collect: if given, filled with (module, name) → syntax tree of every definition that counts.

    Returns:
        16 hexadecimal digits.

    Raises:
        KeyError: an entry does not exist.
    """
    keys = frozenset(selected)
    definitions = {} if collect is None else collect
    pending = []
    for entry in entries:
        module, name = entry.split(":")
        if name not in _module(module).definitions:
            raise KeyError(f"{entry} is not defined in the package")
        pending.append((module, name))
    while pending:
        module, name = pending.pop()
        if (module, name) in definitions or module.partition(".")[0] == SCHEMA:
            continue
        nodes = [_pruned(node, keys) for node in _module(module).definitions[name]]
        definitions[module, name] = "\n".join(ast.dump(node) for node in nodes)
        pending += [reference for node in nodes for reference in _references(module, node)]
    digest = hashlib.sha256()
    for (module, name), text in sorted(definitions.items()):
        digest.update(f"{module}:{name}\n{text}\n".encode())
    return digest.hexdigest()[:16]


def texts_fingerprint() -> str:
    """Checksum of the figures' captions and of the page's template: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in [*sorted(TEXTS.glob("captions/*.rst")), TEXTS / "template.html"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def module_fingerprint(module: str, root: Path = Path()) -> str:
    """Hash of a user's module and of the modules below `root` that it imports, without comments, docstrings or layout.

    Args:
        module: its dotted name, from `root` on.
        root: the working directory.

    Returns:
        16 hexadecimal digits.

    Raises:
        UserError: it is not there, or one of the files is not Python.
    """
    trees: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = root.joinpath(*name.split("."))
        file = next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)
        if file is None or name in trees:
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError) as problem:
            raise UserError(f"{file} is not Python ({problem}); correct it") from None
        trees[name] = ast.dump(_WithoutDocstrings().visit(tree))
        pending += _imported(tree, name if file.name == "__init__.py" else name.rpartition(".")[0])
    if module not in trees:
        raise UserError(f"there is no {module.replace('.', '/')}.py in the working directory; correct the name")
    return hashlib.sha256("".join(f"{name}\n{trees[name]}\n" for name in sorted(trees)).encode()).hexdigest()[:16]


def _imported(tree: ast.AST, package: str):
    """Dotted names of whatever a module of a package may import, and of the packages around it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*filter(None, around), *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for name in filter(None, names):
            parts = name.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


def registry_keys(entry: str) -> list[str]:
    """Keys of a module-level dict literal of the package, e.g. "similarity.measures:MEASURES", without importing it."""
    module, name = entry.split(":")
    (node,) = _module(module).definitions[name]
    return [ast.literal_eval(key) for key in node.value.keys]


class _Module:
    """The top-level definitions and the imports of one module of the package."""

    def __init__(self, name: str):
        path = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
        self.is_package = path.is_dir()
        self.name = name
        file = path / "__init__.py" if self.is_package else path.with_suffix(".py")
        source = file.read_text(encoding="utf-8") if file.exists() or not self.is_package else ""
        tree = _WithoutDocstrings().visit(ast.parse(source))
        self.definitions: dict[str, list[ast.AST]] = {}
        for node in tree.body:
            for target in _defined_names(node):
                self.definitions.setdefault(target, []).append(node)
        self.imports = dict(self._imports(tree))

    def _imports(self, tree: ast.AST):
        """(local name, (module, name)) of everything imported from this package, anywhere in the module."""
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                if base is None:
                    continue
                for alias in node.names:
                    yield alias.asname or alias.name, (base, alias.name)

    def _absolute(self, node: ast.ImportFrom) -> str | None:
        if node.level == 0:
            if node.module is None or node.module.split(".")[0] != PACKAGE.name:
                return None
            return node.module.partition(".")[2]
        parts = self.name.split(".") if self.name else []
        drop = node.level - 1 if self.is_package else node.level
        parts = parts[: len(parts) - drop]
        return ".".join(parts + ([node.module] if node.module else []))


@cache
def _module(name: str) -> _Module:
    return _Module(name)


@cache
def _exists(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _defined_names(node: ast.AST) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.AnnAssign() | ast.AugAssign() if isinstance(node.target, ast.Name):
            return [node.target.id]
    return []


def _references(module: str, node: ast.AST):
    """(module, name) of each definition of the package that a syntax tree names."""
    naming = _module(module)
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            if part.id in naming.definitions:
                yield module, part.id
            elif part.id in naming.imports:
                yield from _resolve(*naming.imports[part.id])
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in naming.imports:
            module_name = _submodule(*naming.imports[part.value.id])
            if module_name is not None:
                yield from _resolve(module_name, part.attr)


def _resolve(module: str, name: str):
    """Follow re-exports (`from .cca import pwcca` in a package's __init__) to where a name is defined."""
    imported_from = _module(module)
    if name in imported_from.definitions:
        yield module, name
    elif imported_from.imports.get(name, (module, name)) != (module, name):  # else it is a submodule
        yield from _resolve(*imported_from.imports[name])


def _submodule(module: str, name: str) -> str | None:
    """The module that `from module import name` binds; None if a definition or re-export of that name comes first."""
    imported_from, submodule = _module(module), f"{module}.{name}".lstrip(".")
    if name in imported_from.definitions:
        return None
    if name in imported_from.imports:
        origin = imported_from.imports[name]
        return _submodule(*origin) if origin != (module, name) else submodule
    return submodule if _exists(submodule) else None


def _pruned(node: ast.AST, keys: frozenset[str]) -> ast.AST:
    """A registry assignment reduced to the keys in use; anything else unchanged."""
    value = getattr(node, "value", None)
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(value, ast.Dict):
        return node
    pairs = [
        (key, item)
        for key, item in zip(value.keys, value.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in keys
    ]
    if not pairs:
        return node
    return ast.Assign(
        targets=[],
        value=ast.Dict(keys=[key for key, _ in pairs], values=[item for _, item in pairs]),
    )


class _WithoutDocstrings(ast.NodeTransformer):
    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                statement
                for statement in body
                if not (
                    isinstance(statement, ast.Expr)
                    and isinstance(statement.value, ast.Constant)
                    and isinstance(statement.value.value, str)
                )
            ]
        return node
