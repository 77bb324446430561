"""A ready image: what is laid over it needs these."""


def test_tools(root, env, check):
    path = env.get("PATH", "")
    needed = ("apt-get", "ldconfig", "python3")
    seen = [name for name in needed if root.program(name, path) is None]
    check("programs that it lacks", seen=seen, expected=[])
