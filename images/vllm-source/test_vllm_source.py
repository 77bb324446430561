"""vLLM, built from the fork by its own Dockerfile."""

import re


def test_place(plan, root, check):
    # The patches expect its files there.
    package = re.compile(r"(^|/)(dist|site)-packages/vllm/__init__\.py$")
    seen = [path for path in root.final if package.search(path)]
    expected = f"usr/local/lib/python{plan['python']}/dist-packages/vllm/__init__.py"
    check("vllm is installed once, where its patches expect it", seen=seen, expected=[expected])
