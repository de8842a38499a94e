"""What an installation brings, and that it gets along with other files of its users."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build writes into the folder that it builds
    files = ["pyproject.toml", "README.md", "LICENSE", "components", "abstractinator"]
    source.mkdir()
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in files), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")} == {"abstractinator"}
    held = {str(name) for name in names if name.parts[0] == "abstractinator"}
    sources = {f"abstractinator/{path.relative_to(ROOT)}" for path in (ROOT / "components").rglob("*.py")}
    package = [path for path in (ROOT / "abstractinator").rglob("*.py") if "components" not in path.parts]
    sources |= {str(path.relative_to(ROOT)) for path in package}
    assert held == sources


def test_a_user_s_own_components_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    (tmp_path / "components" / "transformer.py").write_text("raise RuntimeError('this is the wrong file')\n")
    (tmp_path / "use.py").write_text(
        "import abstractinator.components.hierarchical.hierarchical_aelm\n"
        "from abstractinator.components import HierarchicalAELM\n"
        "print(HierarchicalAELM.kind)\n"
    )
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("hier_ae\n", "")


def test_the_script_evaluate_does_not_hide_the_library_of_that_name() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from importlib.util import find_spec\n"
        "from abstractinator.cli.evaluate import _uncover_library\n"
        "_uncover_library()\n"
        "print(find_spec('evaluate').origin)\n"
        "import abstractinator.cli.info"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() not in ("", str(ROOT / "evaluate.py"))


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status"), [("train --show", 0), ("info nowhere", 2), ("generate nowhere -", 2), ("evaluate --help", 0)]
)
def test_closed_streams_change_no_exit_status(tmp_path: Path, closed: str, words: str, status: int) -> None:
    command = f'exec "{sys.executable}" -m abstractinator {words} {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
