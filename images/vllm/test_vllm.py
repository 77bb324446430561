"""vLLM in the pinned version, and its command."""

import ast


def test_version(plan, root, check):
    installed = root.wheels(plan["python"]).get("vllm", [])
    version = plan["expect"]["version"]
    check(f"vLLM is installed as {version}", seen=", ".join(installed), expected=version)


def test_command_is_python(root, check):
    text = root.text("usr/local/bin/vllm")
    # Debian's pip writes python3, others python3.12.
    first = text.partition("\n")[0].strip().partition(".")[0]
    check("the vllm command runs with /usr/bin/python3", seen=first, expected="#!/usr/bin/python3")
    ast.parse(text)
