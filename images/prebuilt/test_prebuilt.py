"""A ready image: what is laid over it needs these."""


def test_tools(host, check):
    seen = [name for name in ("apt-get", "ldconfig", "python3") if not host.exists(name)]
    check("programs that it lacks", seen=seen, expected=[])
