"""Right images that are unusual: the static tier has nothing against them. And wrong ones that look
like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.lock_items import PinnedImage, Wheel
from sparkimage.config.plan import Input, LayerPlan, Plan, WebFile
from sparkimage.image.layerindex import STEP
from sparkimage.image.store import Store
from sparkimage.verify import static
from tests.lab.mutants import KEY
from tests.unit import elf_maker, good_maker
from tests.unit.good_maker import ARCH, SYSTEM, Files, put_image, put_layer

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
TORCH = "opt/venv/lib/python3.13/site-packages/torch/version.py"
UV = "opt/uv/python/cpython-3.13.1-linux-aarch64-gnu"
ENV = "usr/bin/env"
START = "/opt/start"


def refused(
    tmp_path: Path,
    *,
    base: Files | None = None,
    top: Files | None = None,
    config: Mapping[str, Any] | None = None,
    env: Mapping[str, str | None] | None = None,
    plan: Callable[[Plan], Plan] = lambda plan: plan,
) -> set[str]:
    """The checks that refuse the good image on ``base``, with ``top`` on it."""
    store = Store.open(tmp_path)
    stack = [*([base] if base else []), *good_maker.stack(), *([top] if top else [])]
    made = [put_layer(store, files) for files in stack]
    whole = good_maker.config([diff_id for _, diff_id in made])
    whole["history"] = [
        *([{"created_by": "base"}] if base else []),
        *whole["history"],
        *([{"created_by": f"RUN . {STEP}"}] if top else []),
    ]
    variables = dict(word.split("=", 1) for word in whole["config"]["Env"]) | dict(env or {})
    whole["config"] |= config or {}
    whole["config"]["Env"] = [f"{n}={v}" for n, v in variables.items() if v is not None]
    wanted = good_maker.plan()
    wanted = dataclasses.replace(
        wanted, entrypoint=tuple(whole["config"]["Entrypoint"]), cmd=wanted.cmd
    )
    if base:
        digest = "sha256:" + "0" * 64
        pinned = PinnedImage(name="b", digest=digest, tagged=digest)
        lowest = dataclasses.replace(wanted.layers[0], root=None, image=pinned)
        wanted = dataclasses.replace(wanted, layers=(lowest, *wanted.layers[1:]))
    image = put_image(store, whole, [one for one, _ in made])
    checks = static.examine(plan(wanted), image, store, None)
    return {one.id.removeprefix("static/") for one in checks if one.result != "PASSED"}


def library(*needed: str) -> bytes:
    return elf_maker.library(ARCH, needed=list(needed))


RIGHT: dict[str, dict[str, Any]] = {
    "no PATH in the config": {"env": {"PATH": None}},
    "an ENTRYPOINT below WORKDIR": {
        "top": {"app/start.sh": (0o755, b"#!/usr/bin/python3\n")},
        "config": {"Entrypoint": ["./start.sh"], "WorkingDir": "/app"},
    },
    "a shell that execs": {
        "top": {"usr/bin/sh": (0o755, library())},
        "config": {"Entrypoint": ["/usr/bin/sh", "-c", 'set -e; exec vllm serve "$@"', "--"]},
    },
    "a script by env": {
        "top": {"opt/start": (0o755, b"#!/usr/bin/env -S python3 -u\n"), ENV: (0o755, library())},
        "config": {"Entrypoint": [START]},
    },
    "a slim Python": {
        "base": {
            "usr/local/lib/python3.12/lib-dynload/_tkinter.cpython-312.so": library("libtk8.6.so")
        },
    },
    "a plugin of the base without its library": {
        "base": {"opt/hpcx/ucx/lib/ucx/libuct_rocm.so": library("libhsa-runtime64.so.1")},
    },
    "a base with a company's certificates": {
        "base": {
            "usr/local/share/ca-certificates/corp.crt": CERTIFICATE,
            "etc/ssl/certs/ca-certificates.crt": CERTIFICATE * 2,
        },
    },
    "a base of another distribution": {
        "base": {"etc/redhat-release": b"x", "usr/lib/sysimage/rpm/rpmdb.sqlite": b"x"},
    },
    "names that sound secret": {
        "env": {
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "ACCESS_TOKEN": "/run/secrets/token",
            "OPENAI_API_KEY": "EMPTY",
        },
    },
    "keys for tests": {
        "base": {
            "opt/conda/lib/python3.12/test/certdata/keycert.pem": KEY,
            "usr/share/doc/x/examples/server.pem": KEY,
        },
    },
    "two torch for one CUDA": {
        "top": {
            TORCH: b"cuda: Optional[str] = '13.0'\n",
            "opt/venv/lib/python3.13/site-packages/nvidia/nccl/lib/libnccl.so.2": f"/{SYSTEM}",
        },
    },
    "uv's Python": {
        "top": {
            f"{UV}/lib/libpython3.13.so.1.0": library(),
            f"{UV}/bin/python3.13": (0o755, library("$ORIGIN/../lib/libpython3.13.so.1.0")),
        },
    },
    "eBPF": {
        "top": {"usr/lib/x.bpf.o": library()[:18] + (247).to_bytes(2, "little") + library()[20:]}
    },
}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "no program below WORKDIR": (
        "program", {"config": {"Entrypoint": ["./start.sh"], "WorkingDir": "/app"}},
    ),
    "a shell that stays": (
        "exec-form",
        {
            "top": {"usr/bin/sh": (0o755, library())},
            "config": {"Entrypoint": ["/usr/bin/sh", "-c", "vllm serve"]},
        },
    ),
    "a script without its interpreter": (
        "interpreter",
        {
            "top": {"opt/start": (0o755, b'#!/bin/nosuch\nexec "$@"\n')},
            "config": {"Entrypoint": [START]},
        },
    ),
    "a script with Windows' line ends": (
        "interpreter",
        {
            "top": {"opt/start": (0o755, b"#!/usr/bin/python3\r\n")},
            "config": {"Entrypoint": [START]},
        },
    ),
    "a script without a first line": (
        "interpreter",
        {"top": {"opt/start": (0o755, b'exec "$@"\n')}, "config": {"Entrypoint": [START]}},
    ),
    "a script of what env does not find": (
        "interpreter",
        {
            "top": {"opt/start": (0o755, b"#!/usr/bin/env bash\n"), ENV: (0o755, library())},
            "config": {"Entrypoint": [START]},
        },
    ),
    "a library that only our layer needs": ("needed", {"top": {"opt/x.so": library("libx.so")}}),
    "a prebuilt package without its library": (
        "needed",
        {"base": {"usr/local/lib/python3.12/dist-packages/a/_C.so": library("libx.so")}},
    ),
    "files of another distribution in our layer": (
        "distribution", {"top": {"etc/alpine-release": b"3"}},
    ),
    "a certificate in our layer": (
        "site-ca", {"top": {"usr/local/share/ca-certificates/corp.crt": CERTIFICATE}},
    ),
    "a password": ("env-secrets", {"env": {"DB_PASSWORD": "correct horse"}}),
    "a key beside Python's tests": ("secrets", {"base": {"opt/lib/key.pem": KEY}}),
    "two torch for two CUDA": ("torch-cuda", {"top": {TORCH: b"cuda = '12.8'\n"}}),
    "uv's Python without its library": (
        "needed",
        {"top": {f"{UV}/bin/python3.13": (0o755, library("$ORIGIN/../lib/libpython3.13.so"))}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_an_unusual_image_passes(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, **RIGHT[name]) == set()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_is_refused_by_its_check(tmp_path: Path, name: str) -> None:
    check, faults = WRONG[name]
    assert check in refused(tmp_path, **faults)


METADATA = "opt/venv/lib/python3.13/site-packages/app-1.0.dist-info/METADATA"


@pytest.mark.parametrize(
    ("place", "result"),
    [(METADATA, set()), (METADATA.replace("3.13", "3.12"), {"project", "wheels"})],
)
def test_a_project_in_a_venv_is_found_for_its_python(
    tmp_path: Path, place: str, result: set[str]
) -> None:
    def plan(plan: Plan) -> Plan:
        wheel = Wheel(name="app", version="1.0", size=1, sha256="3" * 64, file="a.whl")
        layer = LayerPlan(name="app", dockerfile="", args={}, into="/opt/venv", wheels=(wheel,))
        return dataclasses.replace(
            plan,
            layers=(*plan.layers, layer),
            expect=dataclasses.replace(plan.expect, project="app", version=None),
        )

    top: Files = {place: b"Name: app\nVersion: 1.0\n"}
    assert refused(tmp_path, top=top, plan=plan) - {"wheel-layers"} == result


STATUS = b"Status: install ok installed\n"


@pytest.mark.parametrize("taken", [False, True])
def test_a_package_that_no_pin_has_may_come_from_a_locked_file(tmp_path: Path, taken: bool) -> None:
    def plan(plan: Plan) -> Plan:
        file = WebFile(
            pin="gdrcopy", value="2.5", url="https://a.example/g.deb", size=1, sha256="4" * 64,
            name="g.deb",
        )  # fmt: skip
        given = Input(context="deb", content=file)
        layer = LayerPlan(name="gdrcopy", dockerfile="", args={}, inputs=(given,) if taken else ())
        return dataclasses.replace(plan, layers=(*plan.layers, layer))

    top: Files = {
        "var/lib/dpkg/status": b"Package: libc6\n" + STATUS + b"Version: 2.41\n\n"
        b"Package: gdrcopy\n" + STATUS + b"Version: 2.5\n"
    }
    assert refused(tmp_path, top=top, plan=plan) == (set() if taken else {"packages"})
