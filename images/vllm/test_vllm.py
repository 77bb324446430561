"""vLLM in the pinned version, and its command."""


def test_version(plan, host, check):
    seen = host.check_output(
        "python3 -c 'import importlib.metadata as m; print(m.version(\"vllm\"))'"
    )
    check("vLLM", seen=seen, expected=plan["versions"]["vllm"])


def test_command_is_python(host, check):
    first = host.run("head -n 1 /usr/local/bin/vllm").stdout.strip()
    # Debian's pip writes python3, others python3.12.
    seen = first.split(".")[0]
    check("first line of the vllm command", seen=seen, expected="#!/usr/bin/python3")
