"""A ready image: the layers above need these programs."""


def test_tools(root, env, check):
    path = env.get("PATH", "")
    needed = ["apt-get", "ldconfig", "python3"]
    seen = [name for name in needed if root.program(name, path) is not None]
    check(f"{', '.join(needed)} are in PATH", seen=seen, expected=needed)
