"""Python, a compiler that works, and the verbs libraries."""

import json

import pytest

PROGRAM = """
import ctypes, json, sys

def verbs():
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as error:
        return str(error)
    return "loaded"

print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "verbs": verbs()}))
"""


@pytest.fixture(scope="module")
def python(host):
    return json.loads(host.check_output("python3 -c %s", PROGRAM))


def test_python_version(plan, python, check):
    version = plan["python"] or python["version"]
    check(f"python3 is Python {version}", seen=python["version"], expected=version)


def test_compiler_builds_an_extension(host, check):
    program = (
        "d=$(mktemp -d); echo '#include <Python.h>' >$d/a.c; "
        "echo 'int a(void){return 0;}' >>$d/a.c; "
        "gcc -shared -fPIC $(python3-config --includes) -o $d/a.so $d/a.c && echo built; rm -rf $d"
    )
    check("gcc builds a Python extension", seen=host.run(program).stdout.strip(), expected="built")


def test_verbs_library_loads(python, check):
    check("libibverbs.so.1 loads", seen=python["verbs"], expected="loaded")
