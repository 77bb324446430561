"""The pinned wheel's NCCL as the system's library."""


def test_system_library(plan, host, check):
    system = f"/usr/lib/{plan['triplet']}/libnccl.so.{plan['versions']['nccl']}"
    seen = host.run("test -f %s -a ! -L %s && echo there", system, system).stdout.strip()
    check(f"{system} is a file", seen=seen, expected="there")
