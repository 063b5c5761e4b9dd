"""The rules of the house: which folder may import which, what is loaded when, and that every package is shipped."""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {folder: package for package, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}
MAY_IMPORT = {
    "ir": {"ir"},
    "passes": {"passes", "ir"},
    "frontends": {"frontends", "ir"},
    "backends": {"backends", "ir", "passes"},
    "api": {"api", "ir", "passes", "frontends", "backends"},
}
HEAVY = frozenset(
    [
        "jax",
        "jaxlib",
        "keras",
        "networkx",
        "onnx_graphsurgeon",
        "onnx_ir",
        "onnxruntime",
        "onnxscript",
        "onnxsim",
        "onnxslim",
        "optax",
        "optuna",
        "rich",
        "safetensors",
        "scipy",
        "sklearn",
        "tensorflow",
        "tensorrt",
        "tokenizers",
        "torch",
        "torchvision",
        "transformers",
    ]
)
LINES = 800
SOURCES = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def relative(path):
    return str(path.relative_to(ROOT))


def folder_of(path):
    return path.relative_to(ROOT).parts[0]


def module_of(path):
    """The name that ``path`` is imported by."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *(r for r in rest if r != "__init__")])


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path, node):
    """The absolute names of the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module_of(path).split(".")
        package = package if path.name == "__init__.py" else package[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def imports(path):
    """Every import of a file, wherever it stands: absolute names, and lines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(path, node):
                yield name, node.lineno


def layer(name):
    """The folder that holds the module (or the name in a module) ``name``; None if it is not planish."""
    if name.split(".")[0] != "planish":
        return None
    packages = sorted(FOLDERS, key=lambda folder: -len(FOLDERS[folder]))
    return next(folder for folder in packages if name == FOLDERS[folder] or name.startswith(FOLDERS[folder] + "."))


def test_folders_are_known():
    assert set(FOLDERS) == set(MAY_IMPORT)
    assert not (ROOT / "planish").exists(), "it would shadow the installed package"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(folder):
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in SOURCES
        if folder_of(path) == folder
        for name, line in imports(path)
        if layer(name) not in {None, *MAY_IMPORT[folder]}
    ]
    assert not wrong, "\n".join(wrong)


def test_folders_below_the_api_import_relatively():
    """Editors can follow relative imports in a checkout; the installed names exist only after installation."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if folder_of(path) != "api"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and not node.level and layer(node.module) is not None
    ]
    assert not wrong, "\n".join(wrong)


def loaded_with_module(node):
    """The import statements that run when a module is imported: none in functions, none for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from loaded_with_module(other)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from loaded_with_module(child)


def loads(path):
    """What a module imports when it is imported: absolute names, and lines."""
    for node in loaded_with_module(tree(path)):
        for name in imported(path, node):
            yield name, node.lineno


def is_adapter(path):
    """Whether a module (or its folder) is named after a heavy package, so that only those import it who use that."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return "xla" in parts or any(package in (part, f"onnx_{part}") for part in parts for package in HEAVY)


def test_heavy_packages_are_imported_where_they_are_used():
    adapters = {module_of(path) for path in SOURCES if is_adapter(path) and path.name != "__init__.py"}
    wrong = [
        f"{relative(path)}:{line} imports {name}"
        for path in SOURCES
        if not is_adapter(path)
        for name, line in loads(path)
        if name.split(".")[0] in HEAVY or name in adapters or name.rpartition(".")[0] in adapters
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "statement", ["import planish", "import planish.cli", "from planish import optimize, Pipeline"]
)
def test_import_is_light(statement):
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & HEAVY
    assert "planish" in loaded
    if statement == "import planish":
        assert not loaded & {"numpy", "onnx"}


def test_every_package_is_shipped():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES}
    found = {module_of(folder / "__init__.py") for folder in folders}
    assert found == listed
    missing = [relative(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, "no __init__.py"


def test_files_are_of_readable_length():
    places = [*FOLDERS, "tests", "examples", "benchmarks", "docs"]
    files = [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]
    long = [
        f"{relative(p)}: {n} lines" for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > LINES
    ]
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is():
    silent = [relative(path) for path in SOURCES if tree(path).body and not ast.get_docstring(tree(path))]
    assert not silent


def test_relative_imports_are_resolved():
    """The test of the tests: what the functions above make of import statements."""
    package, module = ROOT / "passes/simplify/__init__.py", ROOT / "passes/simplify/shapes.py"

    def names(path, code):
        return imported(path, ast.parse(code).body[0])

    assert names(module, "from ...ir import Graph") == ["planish.ir.Graph"]
    assert names(package, "from ...ir import Graph") == ["planish.ir.Graph"]
    assert names(module, "from ..rules import rule") == ["planish.passes.rules.rule"]
    assert names(package, "from . import shapes") == ["planish.passes.simplify.shapes"]
    assert names(ROOT / "backends/base.py", "from .. import testing") == ["planish.testing"]
    assert layer("planish.testing") == layer("planish.Graph") == "api"
    assert layer("planish.ir.Graph") == "ir"
    assert layer("planished") is None
