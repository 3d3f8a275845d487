"""What code does a stage of the workflow depend on?

Snakemake sees a shell command, not the Python functions behind it. Listing whole modules as rule inputs would rerun a
night of training because a comment or a plot in the same file changed. Here a stage is fingerprinted instead: starting
from its entry functions, every definition of this package that they name, directly or through others, is collected from
the syntax tree and hashed without comments, docstrings or layout. Rules pass the fingerprint as `params: code=`, so

- editing a comment, a docstring, the formatting, a log line (`report(...)`) or the words of an error reruns nothing;
- editing a plot reruns plots, editing CCA reruns what follows CCA, and neither retrains a network;
- in a registry (a module-level dict literal, such as `MEASURES`) only the entries that the stage's own options name
  count, so adding a dataset, network or measure reruns nothing, and neither does choosing another one elsewhere;
- a file that a definition names, as "published.csv" beside the module, counts with its content;
- the schema of the config (the room `config`) does not count, because a stage sees nothing of it but values, which
  stand in its params: a new key, bound or description reruns nothing, and neither do the words of `errors`.

Nothing is imported or executed, so this costs milliseconds when the DAG is built. A tree is hashed as `canonical`
writes it, the same under every version of Python, because jobs may run in another environment than Snakemake. A name
that is only looked up at run time (`getattr`) is invisible here; the package avoids that across modules. Methods are
seen because the class is named, be it in a type hint.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from cca_dynamics.errors import UserError

PACKAGE = Path(__file__).parents[1]
TEXTS = PACKAGE / "report"
"""Holds the captions of the figures, captions/*.rst, and the template of the page, template.html."""
DATA_FILES = (".csv",)
"""How the names of data files of the package end."""
NOT_RUN = ("config", "errors")
"""Rooms that hold types of values and the words of errors, not code on which an output depends."""


def code_fingerprint(*entries: str, selected: Iterable[str] = ()) -> str:
    """Hash of all code of this package that the entries depend on.

    Args:
        entries: "module:name" relative to the package, e.g. "training.classifiers:train" or "results.width:plot".
        selected: entries of registries in use, "module:key", e.g. "training.optimizers:sgd". Of a dict literal of a
            module that has any of the module's keys, the other entries are ignored.

    Returns:
        16 hexadecimal digits, the same under every version of Python.

    Raises:
        KeyError: an entry does not exist.
    """
    return _code_fingerprint(frozenset(entries), frozenset(selected))


@cache
def _code_fingerprint(entries: frozenset[str], selected: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for (module, name), text in sorted(definitions(entries, selected).items()):
        digest.update(f"{module}:{name}\n{text}\n".encode())
    return digest.hexdigest()[:16]


def definitions(entries: Iterable[str], selected: Iterable[str] = ()) -> dict[tuple[str, str], str]:
    """All definitions that count for the fingerprint of some entries (see `code_fingerprint`).

    Returns:
        (module, name) → canonical text of the definition.

    Raises:
        KeyError: an entry does not exist.
    """
    keys: dict[str, set[str]] = {}
    for entry in selected:
        module, key = entry.split(":")
        keys.setdefault(module, set()).add(key)
    found: dict[tuple[str, str], str] = {}
    pending = []
    for entry in entries:
        module, name = entry.split(":")
        if name not in _module(module).definitions:
            raise KeyError(f"{entry} is not defined in the package")
        pending.append((module, name))
    while pending:
        module, name = pending.pop()
        if (module, name) in found or module.partition(".")[0] in NOT_RUN:
            continue
        found[module, name], references = _definition(module, name, frozenset(keys.get(module, ())))
        pending += references
    return found


@cache
def _definition(module: str, name: str, keys: frozenset[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Canonical text of a definition, its registry reduced to some keys, and the definitions that it names."""
    nodes = [_without_fields(_pruned(node, keys), _module(module)) for node in _module(module).definitions[name]]
    references = {reference for node in nodes for reference in _references(module, node)}
    texts = [*map(canonical, nodes), *_data_files(module, nodes)]
    return "\n".join(texts), tuple(sorted(references))


def _data_files(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Name and checksum of each data file beside a module whose name is a literal of some definitions."""
    folder = PACKAGE.joinpath(*module.split(".")[:-1])
    literals = (part.value for node in nodes for part in ast.walk(node) if isinstance(part, ast.Constant))
    for name in sorted({text for text in literals if isinstance(text, str) and text.endswith(DATA_FILES)}):
        if (path := folder / name).is_file():
            yield f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def canonical(node: object) -> str:
    """A syntax tree as text that is the same under every version of Python.

    `ast.dump` and `ast.unparse` change from version to version: fields that are empty come and go, and literals are
    quoted in other ways. Here empty fields, contexts and the kind of a literal are left out, literals are written in
    ASCII, and the literal parts of an f-string are joined.
    """
    match node:
        case ast.JoinedStr():
            return f"JoinedStr(values=[{', '.join(_parts_of_text(node.values))}])"
        case ast.AST():
            fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind"))
            texts = (f"{name}={canonical(value)}" for name, value in fields if value is not None and value != [])
            return f"{type(node).__name__}({', '.join(texts)})"
        case list():
            return f"[{', '.join(map(canonical, node))}]"
    return ascii(node)


def _parts_of_text(values: list[ast.expr]) -> Iterator[str]:
    """Canonical parts of an f-string; how many literals stand between two expressions depends on Python's version."""
    for literal, group in groupby(values, lambda value: isinstance(value, ast.Constant)):
        if not literal:
            yield from map(canonical, group)
        elif text := "".join(constant.value for constant in group):
            yield ascii(text)


def parse(source: str | bytes, messages: bool) -> ast.Module:
    """The syntax tree of a module without docstrings.

    Args:
        source: of the module.
        messages: whether to keep log lines, `report(...)`, and the words of errors. An output that is there contains
            neither.
    """
    with warnings.catch_warnings():  # Python has warned the author elsewhere
        warnings.simplefilter("ignore", (SyntaxWarning, DeprecationWarning))
        tree = ast.parse(source)
    tree.body = _reduced(tree.body, messages)
    return tree


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
            tree = parse(file.read_bytes(), messages=True)
        except (SyntaxError, ValueError) as problem:
            raise UserError(f"{file} is not Python ({problem}); correct it") from None
        trees[name] = canonical(tree)
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
        tree = parse(source, messages=False)
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


def forget() -> None:
    """Read the package anew; for tests that change it."""
    for function in (_code_fingerprint, _definition, _module, _exists):
        function.cache_clear()


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


def _references(module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of each definition of the package that a syntax tree names."""
    naming = _module(module)
    for part in _read_outside(node, frozenset()):
        if isinstance(part, ast.Name):
            if part.id in naming.definitions:
                yield module, part.id
            elif part.id in naming.imports:
                yield from _resolve(*naming.imports[part.id])
        elif part.value.id in naming.imports:
            module_name = _submodule(*naming.imports[part.value.id])
            if module_name is not None:
                yield from _resolve(module_name, part.attr)


def _read_outside(node: ast.AST, local: frozenset[str]) -> Iterator[ast.Name | ast.Attribute]:
    """The names, and attributes of names, in a syntax tree that are not variables of the functions around them."""
    match node:
        case ast.Attribute(ast.Name(name)) | ast.Name(name, ast.Load()) if name not in local:
            yield node
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            inside = local | _local_names(node)
            body = node.body if isinstance(node.body, list) else [node.body]
            for part in ast.iter_child_nodes(node):
                yield from _read_outside(part, inside if part in body else local)
            return
    for part in ast.iter_child_nodes(node):
        yield from _read_outside(part, local)


def _local_names(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """Parameters of a function and names it assigns to; not those of comprehensions, which hold only there."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names, elsewhere = {argument.arg for argument in parameters if argument}, set()
    pending = list(function.body) if isinstance(function.body, list) else []
    while pending:
        match node := pending.pop():
            case ast.Name(name, ast.Store()):
                names.add(name)
            case ast.Global(more) | ast.Nonlocal(more):
                elsewhere |= set(more)
            case ast.ImportFrom() | ast.Import():
                elsewhere |= {alias.asname or alias.name for alias in node.names}
        if not isinstance(node, INNER_SCOPES):
            pending += ast.iter_child_nodes(node)
    return names - elsewhere


INNER_SCOPES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


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


def _without_fields(node: ast.AST, module: _Module) -> ast.AST:
    """A class that adds keys to the config, without the keys; anything else unchanged."""
    bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
    if not any(module.imports.get(base, ("", ""))[0].partition(".")[0] in NOT_RUN for base in bases):
        return node
    body = [statement for statement in node.body if not isinstance(statement, ast.AnnAssign)]
    return ast.ClassDef(node.name, node.bases, node.keywords, body, node.decorator_list)


def _reduced(statements: list[ast.AST], messages: bool) -> list[ast.AST]:
    """Statements, and those inside them, without text that nothing depends on; see `parse`."""
    kept = []
    for statement in statements:
        match statement:
            case ast.Expr(ast.Constant(str())):
                continue
            case ast.Expr(ast.Call(ast.Name("report") | ast.Attribute(attr="_report"))) if not messages:
                continue
            case ast.Raise() if not messages:
                statement = _WithoutWords().visit(statement)
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            if isinstance(inside := getattr(statement, name, None), list):
                setattr(statement, name, _reduced(inside, messages))
        kept.append(statement)
    return kept


class _WithoutWords(ast.NodeTransformer):
    """Empties literals of text."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")
