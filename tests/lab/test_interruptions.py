"""Bad weather: what is interrupted, cut off, full or unreachable, on real parts."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.build import builder
from sparkimage.build.engine import engine, private, processes
from sparkimage.core.errors import BuildError, EngineError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Local
from sparkimage.core.rights import run_as_root
from tests.lab.conftest import REPOSITORY, STORE, Lab, matrix_data, spare_engine
from tests.lab.node import READY_S

RUNNER = Local()


@pytest.fixture(scope="module")
def slow(lab: Lab) -> Iterator[str]:
    """A variant that waits in its last layer until the test lets it go on."""
    lab.add_layer(
        "waits",
        'FROM layer AS waits\nARG GATE\nRUN [ -z "$GATE" ] || sleep 600\n',
    )
    before = (lab.project / "matrix.yaml").read_text()
    held = (lab.project / "matrix.lock").read_text()
    data = matrix_data()
    data["layers"]["waits"] = {"args": {"GATE": "shut"}}
    data["include"] = [
        {
            "name": "waits",
            "platform": "linux/amd64",
            "layers": ["debian", "waits"],
            "entrypoint": [],
            "pins": {"debian": "trixie"},
        }
    ]
    lab.write(data)
    (lab.project / "matrix.lock").write_text(held)
    lab.lock()
    yield "waits"
    (lab.project / "matrix.yaml").write_text(before)
    (lab.project / "matrix.lock").write_text(held)


def wait_for(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read what the command says until it says ``text``."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"it ended without {text!r}: {''.join(lines)}")


def start(lab: Lab, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        lab.argv(*words),
        env=lab.environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in tasks]


def test_an_interrupt_leaves_nothing_half_named(lab: Lab, slow: str) -> None:
    before = lab.images(), lab.context.store.names()
    with start(lab, "image", slow) as process:
        wait_for(process, "layer waits: running")
        (buildx,) = children(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=READY_S)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not Path(f"/proc/{buildx}").exists()
    assert (lab.images(), lab.context.store.names()) == before
    assert list(lab.context.store.root.glob("incoming-*")) == []


def test_a_build_error_shows_the_step_and_its_output(lab: Lab, slow: str) -> None:
    lab.add_layer("waits", "FROM layer AS waits\nRUN echo the reason; exit 3\n")
    with pytest.raises(BuildError) as failure:
        lab.build(slow)
    assert "the reason" in failure.value.detail
    assert "exit code: 3" in failure.value.detail
    lab.add_layer("waits", "FROM layer AS waits\nRUN sleep 600\n")


def test_a_full_disk_is_seen_before_anything_long(lab: Lab, slow: str, tmp_path: Path) -> None:
    run_as_root(RUNNER, ("mount", "-t", "tmpfs", "-o", "size=64m", "none", str(tmp_path)))
    try:
        done = lab.run("image", slow, SPARKIMAGE_STORE=str(tmp_path / "store"))
    finally:
        run_as_root(RUNNER, ("umount", str(tmp_path)))
    assert done.returncode == 9
    assert "free; waits needs" in done.stderr
    assert "layer" not in done.stderr.split("error:")[0]


@pytest.fixture
def no_network() -> tuple[str, ...]:
    """Puts a command into a network namespace that has no interface up."""
    return ("unshare", "--net", "--")


def cut_off(lab: Lab, prefix: tuple[str, ...], *words: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, *lab.argv(*words)],
        env=lab.environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_lock_without_a_network_names_the_pin(lab: Lab, no_network: tuple[str, ...]) -> None:
    held = (lab.project / "matrix.lock").read_text()
    code, said = cut_off(lab, no_network, "lock", "--update", "nccl==2.30.4", UV_HTTP_RETRIES="0")
    assert code == 10
    assert (lab.project / "matrix.lock").read_text() == held
    assert "pin nccl 2.30.4 on linux/" in said
    assert "cannot be reached" in said
    assert "Traceback" not in said


def test_a_wheel_that_cannot_be_fetched_is_named_before_anything_long(
    lab: Lab, no_network: tuple[str, ...], tmp_path: Path
) -> None:
    # A store of its own has no record that these wheels were fetched before.
    code, said = cut_off(
        lab, no_network, "image", "good-amd64", SPARKIMAGE_STORE=str(tmp_path / "store")
    )
    assert code == 10
    assert "the wheel nvidia-cuda-runtime 13.0.96 cannot be fetched" in said
    assert "layer cuda: running" not in said


@pytest.fixture
def fragile(lab: Lab) -> Iterator[Lab]:
    """The lab with an engine that may be killed."""
    with spare_engine("fragile") as (home, spare):
        made = Lab(lab.project, STORE, spare)
        made.context = dataclasses.replace(made.context, home=home)
        yield made
        made.said.close()


def test_a_daemon_killed_in_mid_build_is_named_and_the_next_run_resumes(
    fragile: Lab, slow: str
) -> None:
    home = fragile.context.home
    environment = {"SPARKIMAGE_HOME": str(home), "SPARKIMAGE_ENGINE": "private"}
    fragile.add_layer("waits", "FROM layer AS waits\nRUN sleep 601\n")
    with start(fragile, "image", slow, **environment) as process:
        wait_for(process, "layer waits: running")
        daemon = processes.daemon(EnginePlace.of(home))
        assert daemon is not None
        run_as_root(RUNNER, ("kill", "-9", str(daemon.pid)))
        assert daemon.wait(READY_S)
        _, said = process.communicate(timeout=READY_S)
    assert process.returncode == EngineError.exit_code, said
    assert "stopped during the build of waits" in said
    assert f"{REPOSITORY}:waits" not in fragile.context.store.names()
    with pytest.raises(EngineError):
        engine.private(home, RUNNER)
    # What it built before is cached; the layer that waited is built now.
    again = private.up(home, RUNNER, print)
    fragile.context = dataclasses.replace(fragile.context, engine=again)
    fragile.add_layer("waits", "FROM layer AS waits\nRUN true\n")
    plan = fragile.plan(slow)
    with builder.execute(plan, fragile.context) as staged:
        assert len(staged.image.layers) == 2
