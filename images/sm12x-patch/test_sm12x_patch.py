"""The patched files, to the byte."""


def test_patched_files(plan, host, check):
    expected = {
        f"{patch['root']}/{target['path']}": target["after"]
        for layer in plan["layers"]
        for patch in layer["patches"]
        for target in patch["targets"]
    }
    seen = {
        path: (host.run("sha256sum %s", path).stdout.split() or ["missing"])[0] for path in expected
    }
    check("sha256 of the patched files", seen=seen, expected=expected)


def test_they_are_python(plan, host, check):
    # A patch that does not parse would be seen with the first request only.
    paths = [
        f"{patch['root']}/{target['path']}"
        for layer in plan["layers"]
        for patch in layer["patches"]
        for target in patch["targets"]
        if target["path"].endswith(".py")
    ]
    program = "import ast, sys; [ast.parse(open(path).read()) for path in sys.argv[1:]]"
    done = host.run(f"python3 -c %s {' '.join(paths)}", program)
    check("syntax of the patched files", seen=done.stderr.strip()[-300:], expected="")
