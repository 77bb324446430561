"""What the system refuses is said as any other error: the path, the reason, what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sparkimage.cli.os_errors import refusal
from tests.lab import command

FILE = "a file and no folder"


def called(words: str, folder: Path, **environment: str) -> tuple[int, str]:
    done = command.call(words.split(), {**os.environ, **environment}, cwd=folder)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(FILE)
    home = str(tmp_path / "file" / "home")
    code, text = called("images", tmp_path, SPARKIMAGE_HOME=home)
    assert code == 9
    assert text.startswith(f"error: {home}/")
    assert text.endswith(
        ": Not a directory\n→ export SPARKIMAGE_HOME=DIR, a folder that this user can write to\n"
    )


def test_a_path_of_the_user() -> None:
    error = refusal(PermissionError(errno.EACCES, "Permission denied", "/root/x.tar"))
    assert error is not None
    assert error.message == "/root/x.tar: Permission denied"
    assert error.hint == "pass another path, or let its owner give you the right to it"


def test_a_home_that_was_made_with_sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARKIMAGE_HOME", str(tmp_path))
    error = refusal(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x")))
    assert error is not None
    assert error.message == f"{tmp_path}/x: Permission denied"
    assert error.hint.startswith(f'sudo chown -R "$USER" {tmp_path}; or export SPARKIMAGE_HOME=')


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("path", [None, "/x"])
def test_a_full_disk(number: int, path: str | None) -> None:
    error = refusal(OSError(number, os.strerror(number), path))
    assert error is not None
    assert error.exit_code == 9
    assert error.hint.startswith("free some disk")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
        PermissionError(errno.EPERM, "Operation not permitted"),
        OSError("text alone"),
    ],
)
def test_what_the_program_itself_does_wrong_stays_an_error_of_it(error: OSError) -> None:
    assert refusal(error) is None
