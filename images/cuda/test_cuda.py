"""The CUDA wheels of the lock, each in its version."""

import json

PROGRAM = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-').replace('.', '-'): d.version "
    "for d in m.distributions()}))"
)


def test_every_wheel_of_the_lock(plan, host, check):
    installed = json.loads(host.check_output(f'python3 -c "{PROGRAM}"'))
    expected = {w["name"]: w["version"] for layer in plan["layers"] for w in layer["wheels"]}
    seen = {name: installed.get(name) for name in expected}
    wrong = {name: version for name, version in seen.items() if version != expected[name]}
    check(f"{len(expected)} wheels in the lock's versions, but for", seen=wrong, expected={})


def test_cuda_home(host, check):
    seen = host.run('test -f "$CUDA_HOME/include/cuda_runtime.h" && echo there').stdout.strip()
    check("CUDA_HOME has the runtime's headers", seen=seen, expected="there")
