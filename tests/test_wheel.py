"""The wheel: the catalog travels inside the package, and nothing else becomes a top-level module."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="building the wheel needs the dev extra")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the build backend itself: no isolation, no network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_top_level_is_the_package_alone(wheel: Path) -> None:
    # A user's own models/ or cli.py must never be shadowed by ours.
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"solver", next(name for name in top if name.endswith(".dist-info"))}
    assert "solver/py.typed" in names


def test_catalog_is_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.removeprefix("solver/") for name in names if name.endswith(".toml")}
    assert inside == {file.relative_to(ROOT).as_posix() for file in (ROOT / "models").rglob("*.toml")}


def test_unpacked_wheel_finds_its_catalog(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import solver; from solver.specs import catalog; print(solver.__file__); "
        "print(catalog.load_llm('deepseek-v3').num_layers, len(catalog.names('cluster')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    file, numbers = done.stdout.splitlines()
    assert Path(file).is_relative_to(target)
    # DeepSeek-V3 has 61 decoder layers in its config.json.
    assert numbers == f"61 {len(list((ROOT / 'models' / 'cluster').glob('*.toml')))}"


def test_metadata_names_license_and_script(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "Name: shardwright" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "shardwright = solver.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in archive.namelist()
