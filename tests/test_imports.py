"""Who imports whom: from the top down, and never in a circle; and the frame knows no kind of model."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "abstractinator"

# From the top down: each may import what comes after it.
LAYERS = (
    "benchmarks",
    "abstractinator.__main__",
    "abstractinator.cli",
    "abstractinator.training",
    "abstractinator.evaluation",
    "abstractinator.tracking",
    "abstractinator.checkpoints",
    "abstractinator.config",
    "abstractinator.data",
    "abstractinator.registry",
    "abstractinator.components.hierarchical",
    "abstractinator.components.cta",
    "abstractinator.components.calm",
    "abstractinator.components.glae",
    "abstractinator.components.incremental",
    "abstractinator.components.bottlenecks",
    "abstractinator.components",
    "abstractinator.contract",
    "abstractinator.device",
    "abstractinator.processor",
    "abstractinator.messages",
    "abstractinator.atomic_file",
    "abstractinator",
)
FRAME = ("training", "checkpoints", "tracking", "evaluation", "cli", "config", "data", "contract", "registry.py")
# Kinds, and concepts of kinds: none of them is a word of the frame.
CONCEPTS = re.compile(
    r"\bcta\b|\bcalm\b|\bglae\b|hier_?ae|hierarchical|aelm|auto-?encoder|\bcodes?\b(?!\.\w)|lattice|codebook|segment|two.?part|entropy.?model|quantiz"
    r"|expander|compressor|n-?grams? (?:table|hash)|(?:both|two) modes|speculative|[`\"']plan[`\"']|plan mode",
    re.IGNORECASE,
)
# `code` in other senses than a model's.
OTHER_CODES = re.compile(
    r"exit codes?|executing code|running (?:its )?code|code (?:of the file )?(?:runs|ran)|no code\b"
)


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its name."""
    found = {}
    for top, folder in (("abstractinator", "abstractinator"), ("abstractinator.components", "components")):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).with_suffix("")
            if folder == "abstractinator" and inside.parts[0] == "components":
                continue  # the link to ../components
            found[".".join([top, *inside.parts]).removesuffix(".__init__")] = path
    for path in (ROOT / "benchmarks").rglob("*.py"):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the project that each imports, anywhere in it, for types only or not."""
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{path}: a relative import"
                targets |= {
                    whole if (whole := f"{node.module}.{alias.name}") in modules() else node.module
                    for alias in node.names
                }
        graph[name] = {target for target in targets if target in modules()} - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (Tarjan 1972, the short way: by mutual reachability)."""
    reach = {node: set(targets) for node, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for node in reach:
            more = set().union(*(reach[target] for target in reach[node])) - reach[node]
            changed |= bool(more)
            reach[node] |= more
    groups = {frozenset({node} | {o for o in reach[node] if node in reach[o]}) for node in reach if node in reach[node]}
    return sorted(sorted(group) for group in groups)


def layer_of(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module == layer or module.startswith(f"{layer}."))


def test_the_graph_is_read() -> None:
    graph = imports()
    assert len(graph) > 100
    assert "abstractinator.training.state" in graph["abstractinator.training.loop"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_files_import_each_other_in_a_circle() -> None:
    # A package and its modules: its __init__ names them for its users.
    inside = {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in imports().items()}
    assert circles(inside) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    def folder(module: str) -> str:
        path = modules()[module]
        return module if path.name == "__init__.py" else module.rpartition(".")[0]

    graph: dict[str, set[str]] = {}
    for module, targets in imports().items():
        here = folder(module)
        others = {folder(target) for target in targets}
        # A folder's own subfolders are parts of it.
        graph.setdefault(here, set()).update(
            other for other in others if not other.startswith(f"{here}.") and not here.startswith(f"{other}.")
        )
        graph[here].discard(here)
    assert circles(graph) == []


def test_imports_go_down() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in imports().items()
        for target in targets
        if layer_of(target) < layer_of(name) and not target.startswith(f"{name}.")
    ]
    assert wrong == []


@pytest.mark.parametrize("part", FRAME)
def test_the_frame_names_no_kind_and_no_concept_of_one(part: str) -> None:
    named, whole = [], ROOT / PACKAGE / part
    for path in sorted(whole.rglob("*.py")) or [whole]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if CONCEPTS.search(OTHER_CODES.sub("", line)):
                named.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert named == []


def run(code: str, **where: object) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_a_model_imports_nothing_that_it_does_not_need() -> None:
    heavy = "transformers peft mlflow datasets pyarrow pandas matplotlib lm_eval vector_quantize_pytorch sklearn scipy"
    code = "import sys, abstractinator.checkpoints.models, abstractinator.components.hierarchical.hierarchical_aelm\n"
    assert run(f"{code}print([name for name in {heavy.split()} if name in sys.modules])") == "[]\n"


def test_the_command_line_is_there_without_torch() -> None:
    code = "import sys, abstractinator.cli.command_line as c; c.parser().format_help()\n"
    assert run(f"{code}print([name for name in ('torch', 'numpy', 'lm_eval') if name in sys.modules])") == "[]\n"


def test_ctrl_c_is_handled_before_anything_large_is_imported() -> None:
    code = "import sys, signal, typing; before = set(sys.modules); import abstractinator.cli.main\n"
    code += "print(*sorted(set(sys.modules) - before))"
    assert run(code) == "abstractinator abstractinator.cli abstractinator.cli.main\n"


def test_a_checkout_has_the_same_classes_under_the_name_components() -> None:
    code = "import components, abstractinator.components as own\n"
    code += (
        "print(all(getattr(components, name) is getattr(own, name) for name in own.__all__), len(own.__all__) > 5)\n"
    )
    code += "try:\n import components.transformer\nexcept ImportError:\n print('one name')"
    assert run(code) == "True True\none name\n"
