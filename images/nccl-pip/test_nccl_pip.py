"""One NCCL, the pinned one, at every path.

The static tier checks the files; these checks ask the library itself.
"""

import json
import posixpath

import pytest

PROGRAM = """
import ctypes, json, sys

def version(path):
    answer = ctypes.c_int()
    try:
        ctypes.CDLL(path).ncclGetVersion(ctypes.byref(answer))
    except (OSError, AttributeError) as error:
        return str(error)
    return answer.value

print(json.dumps([version(path) for path in sys.argv[1:]]))
"""


def library(plan):
    return f"/usr/lib/{plan['triplet']}/libnccl.so.{plan['expect']['nccl']}"


def test_preload_names_the_library(plan, env, check):
    check("LD_PRELOAD names the pinned libnccl", seen=env.get("LD_PRELOAD"), expected=library(plan))


@pytest.fixture(scope="module")
def system(plan):
    return library(plan)


@pytest.fixture(scope="module")
def code(plan):
    major, minor, patch = (int(part) for part in plan["expect"]["nccl"].split("."))
    return major * 10000 + minor * 100 + patch


@pytest.fixture(scope="module")
def places(plan, system):
    dist = f"/usr/local/lib/python{plan['python']}/dist-packages"
    links = f"{posixpath.dirname(system)}/libnccl.so.2", f"{dist}/nvidia/nccl/lib/libnccl.so.2"
    return [system, *links]


@pytest.fixture(scope="module")
def answers(host, places):
    # Without the preload, so that a missing or broken one cannot keep the program from starting.
    words = " ".join("%s" for _ in places)
    done = host.run(
        f'p="$LD_PRELOAD"; unset LD_PRELOAD; python3 -c %s {words} "$p"', PROGRAM, *places
    )
    assert done.rc == 0, done.stderr[-1500:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_version_of_every_copy(answers, places, code, check):
    seen = dict(zip(places, answers, strict=False))
    title = "every path of libnccl leads to the pinned version (ncclGetVersion)"
    check(title, seen=seen, expected=dict.fromkeys(places, code))


def test_version_of_the_preload(answers, code, check):
    check(
        "the preloaded libnccl has the pinned version (ncclGetVersion)",
        seen=answers[-1],
        expected=code,
    )


def test_preload_is_obeyed(host, check):
    # glibc only prints a line to stderr when it cannot preload.
    said = host.run("true").stderr.strip()
    check("ld.so preloads it without a complaint", seen=said, expected="")


def test_torch_maps_exactly_one_nccl(torch, system, check):
    title = "`import torch` maps one libnccl, the pinned one"
    check(title, seen=torch["maps"], expected=[system])


def test_mapped_nccl_answers_the_pin(torch, code, check):
    # torch.cuda.nccl.version() is the version that torch was compiled with.
    title = "the libnccl that torch maps has the pinned version (ncclGetVersion)"
    check(title, seen=torch["nccl"], expected=code)


def test_linker_cache_knows_it(host, system, check):
    program = (
        "ldconfig -p | sed -n 's/^[[:space:]]*libnccl.so.2 .*=> //p' | xargs -r -n 1 readlink -f"
    )
    check(
        "the cache of ldconfig has one libnccl.so.2, the pinned one",
        seen=host.run(program).stdout.split(),
        expected=[system],
    )
