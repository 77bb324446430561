"""build.py in a folder of its own: a small lock, a package that says how it was called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
ONCE = "preparing /"


def pinned(name: str) -> str:
    """One package of the real lock, with its hashes."""
    lock = (PROJECT / "requirements.txt").read_text()
    match = re.search(rf"^{name}==.*(?:\\\n    --hash=\S+ ?)+", lock, re.MULTILINE)
    assert match is not None
    return f"{match[0]}\n"


def build(project: Path, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(project / "build.py"), *argv],
        cwd=cwd or project, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone with space")
    shutil.copy(PROJECT / "build.py", folder)
    (folder / "requirements.txt").write_text(pinned("packaging"))
    (folder / "sparkimage").mkdir()
    (folder / "sparkimage" / "__init__.py").touch()
    (folder / "sparkimage" / "__main__.py").write_text(
        "import os, packaging, sys\n"
        "print(packaging.__version__, sys.argv[1:], os.environ['SPARKIMAGE_PROGRAM'])\n"
        "sys.exit(7)\n"
    )
    return folder


def test_the_first_start_makes_the_environment_and_later_ones_do_not(
    project: Path, tmp_path: Path
) -> None:
    first = build(project, "a b", "--c")
    assert f"['a b', '--c'] '{project}/build.py'\n" in first.stdout, first.stderr
    assert first.returncode == 7
    assert ONCE in first.stderr
    made = (project / ".venv" / "stamp").stat()
    # From elsewhere, where a file has the name of a module.
    (tmp_path / "packaging.py").write_text("raise SystemExit('the wrong module')\n")
    again = build(project, cwd=tmp_path)
    assert again.stdout.startswith(f"{first.stdout.split()[0]} [] ")
    assert again.stderr == ""
    # All but when it was last read.
    found = (project / ".venv" / "stamp").stat()
    assert (found.st_ino, found.st_size) == (made.st_ino, made.st_size)
    assert (found.st_mtime_ns, found.st_ctime_ns) == (made.st_mtime_ns, made.st_ctime_ns)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["./build.py"], "./build.py"),
        (["python3", "build.py"], "python3 build.py"),
        (["python3", "./build.py"], "./build.py"),
        (["spark"], "spark"),
    ],
)
def test_the_program_is_told_how_it_was_started(
    project: Path, tmp_path: Path, argv: list[str], name: str
) -> None:
    (tmp_path / "spark").symlink_to(project / "build.py")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        argv, cwd=project, env={**os.environ, "PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.endswith(f" [] {name}\n"), done.stderr


def test_a_clone_that_is_read_only(project: Path, tmp_path: Path) -> None:
    clone, home = tmp_path / "clone", tmp_path / "home"
    shutil.copytree(project, clone, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    before = sorted(clone.rglob("*"))
    # Rights do not keep root from writing.
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, str(clone)] if os.geteuid() == 0 else []
    clone.chmod(0o555)
    for said in (f"preparing {home}/.cache/sparkimage/", ""):
        done = subprocess.run(
            [*alone, sys.executable, str(clone / "build.py")], capture_output=True, text=True,
            env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": ""}, check=False,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        assert done.stderr.startswith(said)
        assert bool(done.stderr) == bool(said)
    clone.chmod(0o755)
    assert sorted(clone.rglob("*")) == before


@pytest.mark.thorough
def test_an_interrupted_install_and_a_changed_lock_are_done_anew(project: Path) -> None:
    build(project)
    (project / ".venv" / "stamp").unlink()
    (project / ".venv" / "half").touch()
    redone = build(project)
    assert redone.returncode == 7
    assert ONCE in redone.stderr
    assert not (project / ".venv" / "half").exists()
    with (project / "requirements.txt").open("a") as lock:
        lock.write("# changed\n")
    assert ONCE in build(project).stderr
    assert build(project).stderr == ""


@pytest.mark.thorough
def test_a_wheel_of_another_hash_is_refused(project: Path) -> None:
    lock = project / "requirements.txt"
    good = lock.read_text()
    lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", good))
    refused = build(project)
    lock.write_text(good)
    assert refused.returncode == 9
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert "error: failed: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (project / ".venv" / "stamp").exists()
