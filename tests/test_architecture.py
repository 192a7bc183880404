"""The house rules, held against the code: import table, fences of third-party libraries, sizes, names, pages.

The tables stand in `docs/development.md` and are read from there. Each rule is also tried on a tree that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 59
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
SOURCE_FOLDERS = ("pipeline", "tests", "benchmarks")


def table(page: str, header: str) -> list[list[str]]:
    """Cells of the rows of the Markdown table whose header row starts with ``header``."""
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


def names_in(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


PAGE = (REPOSITORY / "docs" / "development.md").read_text(encoding="utf-8")
FLOORS = {cells[1].strip("`"): int(cells[0]) for cells in table(PAGE, "| floor |")}
ALLOWED_IMPORTS = {cells[1].strip("`"): names_in(cells[2]) for cells in table(PAGE, "| floor |")}
FENCES = {cells[0].strip("`"): names_in(cells[1]) for cells in table(PAGE, "| library |")}
# Names under which a fenced library can also be imported.
ALIASES = {"pytorch_lightning": "lightning"}


def python_files(root: Path, *folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def imported_modules(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that the file imports, anywhere in it."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from pipeline import data` names a package only in its alias.
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def package_of(path: Path, root: Path) -> str:
    """`pipeline/data/rows.py` -> `data`; `pipeline/cli.py` -> `cli`."""
    first = path.relative_to(root / "pipeline").parts[0]
    return first.removesuffix(".py")


def import_violations(root: Path) -> list[str]:
    found = []
    for path in python_files(root, "pipeline"):
        package = package_of(path, root)
        place = path.relative_to(root)
        if package not in ALLOWED_IMPORTS and package != "__init__":
            found.append(f"{place}: {package} has no floor in docs/development.md")
            continue
        allowed = ALLOWED_IMPORTS.get(package, set()) | {package}
        for line, module in imported_modules(path, root):
            parts = module.split(".")
            library = ALIASES.get(parts[0], parts[0])
            if parts[0] == "pipeline" and len(parts) > 1 and parts[1] not in allowed:
                found.append(f"{place}:{line}: {package} may not import pipeline.{parts[1]}")
            if package not in FENCES.get(library, {package}):
                found.append(f"{place}:{line}: {library} may not be imported in {package}")
    return found


def size_violations(root: Path) -> list[str]:
    found = []
    for path in python_files(root, *SOURCE_FOLDERS):
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(root)
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            found.append(f"{place}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if (lines := (node.end_lineno or first) - first + 1) > MAX_FUNCTION_LINES:
                    found.append(f"{place}:{first}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    return found


def name_violations(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: the name says nothing"
        for path in python_files(root, *SOURCE_FOLDERS)
        for name in [path.parent.name if path.stem == "__init__" else path.stem]
        if VAGUE_NAMES & set(name.lower().split("_"))
    ]


def page_violations(root: Path) -> list[str]:
    """Those without a page of their name in `docs/` or one that names `pipeline/NAME/` at the start or in a heading."""
    subjects = "".join(f"`pipeline/{page.stem}/`" for page in (root / "docs").glob("*.md"))
    for page in (root / "docs").glob("*.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        subjects += "\n".join([*lines[:8], *(line for line in lines if line.startswith("#"))])
    packages = sorted({path.parent.name for path in (root / "pipeline").glob("*/*.py")})
    return [f"pipeline/{name} has no page in docs/" for name in packages if f"`pipeline/{name}/`" not in subjects]


def test_imports_go_down_and_stay_inside_the_fences() -> None:
    assert import_violations(REPOSITORY) == []


def test_files_and_functions_stay_small() -> None:
    assert size_violations(REPOSITORY) == []


def test_module_names_say_something() -> None:
    assert name_violations(REPOSITORY) == []


def test_every_package_has_a_page() -> None:
    assert page_violations(REPOSITORY) == []


def test_the_table_itself_only_goes_down() -> None:
    same_floor = {("config", "base")}
    for package, allowed in ALLOWED_IMPORTS.items():
        for other in allowed:
            assert FLOORS[other] < FLOORS[package] or (package, other) in same_floor, (package, other)


def test_command_line_config_and_launch_load_no_heavy_library() -> None:
    files = python_files(REPOSITORY, "pipeline/config", "pipeline/launch")
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in files if path.stem != "__init__"
    ]
    program = f"import pipeline.cli, {', '.join(modules)}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & {*FENCES, "numpy"} == set()


PLANTED = {
    "upward import": (
        import_violations,
        "pipeline/data/a.py",
        "import pipeline.train.run\n",
        "may not import pipeline.train",
    ),
    "sideways import": (
        import_violations,
        "pipeline/models/a.py",
        "from pipeline.data.rows import x\n",
        "pipeline.data",
    ),
    "through the package": (import_violations, "pipeline/corpus/a.py", "from pipeline import data\n", "pipeline.data"),
    "relative": (
        import_violations,
        "pipeline/shards/a.py",
        "from ..data import rows\n",
        "may not import pipeline.data",
    ),
    "inside a function": (
        import_violations,
        "pipeline/launch/a.py",
        "def f():\n    import torch.nn\n",
        "a.py:2: torch",
    ),
    "by string": (import_violations, "pipeline/config/a.py", "importlib.import_module('torch')\n", "torch may not"),
    "fence": (import_violations, "pipeline/data/a.py", "from wandb import init\n", "wandb may not be imported in data"),
    "alias": (import_violations, "pipeline/optim/a.py", "import pytorch_lightning\n", "lightning may not"),
    "no floor": (import_violations, "pipeline/attic/a.py", "", "attic has no floor"),
    "long file": (size_violations, "pipeline/data/a.py", "\n" * 400, "400 lines, at most 399"),
    "long function": (
        size_violations,
        "tests/a.py",
        "@d\ndef f():\n" + "    x = 1\n" * 58,
        "f has 60 lines, at most 59",
    ),
    "vague module": (name_violations, "pipeline/data/tar_utils.py", "", "tar_utils.py"),
    "vague package": (name_violations, "pipeline/common/__init__.py", "", "common/__init__.py"),
    "no page": (page_violations, "pipeline/data/__init__.py", "", "pipeline/data has no page"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_each_rule_finds_what_breaks_it(case: str, tmp_path: Path) -> None:
    rule, place, text, message = PLANTED[case]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "shards.md").write_text("# Shards\n\n`pipeline/shards/` ...\n")
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    assert rule(tmp_path) == []
    path.write_text(text)
    (violation,) = rule(tmp_path)
    assert message in violation


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("pipeline/train/a.py", "import deepspeed, torch\nfrom pipeline.data.rows import x\nfrom . import run\n"),
        ("pipeline/data/a.py", "from pipeline.data import rows\nimport numpy\nfrom pipeline.shards import reader\n"),
        ("pipeline/commands/a.py", "def f():\n    from pipeline.train.run import train\n"),
    ],
)
def test_allowed_imports_pass(place: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert import_violations(tmp_path) == []
