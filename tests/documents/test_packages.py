"""The packages that `pip install` gets: the wheel and the source archive, built and tried apart from this folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
DATA = {"landscape/py.typed", "trainers/py.typed", "landscape/report/page/report.html.j2"}


def run(*words: object, folder: Path, **env: str) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the source archive; the wheel is built of a copy, so that no build folder is left."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", folder=ROOT).splitlines() if (ROOT / ".git").exists() else None
    for name in listed or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    for kind in ("sdist", "wheel"):  # each in a process of its own, as installers do
        run(sys.executable, "-c", f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})", folder=copy)
    return out


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= DATA
    assert {name.split("/")[0] for name in names} - {wheel.name.rsplit("-", 3)[0] + ".dist-info"} == {
        "landscape",
        "trainers",
    }
    kept = {str(p.relative_to(ROOT)) for room in ("landscape", "trainers") for p in (ROOT / room).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == kept


def test_the_source_archive_holds_the_license_and_the_data(built):
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert names >= DATA | {"LICENSE", "README.md", "pyproject.toml"}


def test_the_wheel_works_in_an_environment_of_its_own(built, tmp_path):
    """Installed without its dependencies, which are this environment's, behind its own folder on the path."""
    [wheel] = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(python, "-c", code, folder=tmp_path).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel, folder=tmp_path)
    (own / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    assert run(tmp_path / "venv" / "bin" / "landscape", "--version", folder=tmp_path).startswith("landscape ")
    code = "import landscape, trainers; print(landscape.__file__, trainers.__file__)"
    for file in run(python, "-c", code, folder=tmp_path).split():
        assert Path(file).is_relative_to(own)
    assert (own / "landscape" / "report" / "page" / "report.html.j2").is_file()
