"""The NCCL packages of the lock, over whatever the base image held."""


def test_packages(plan, host, check):
    layers = [layer["debs"]["debs"] for layer in plan["layers"] if layer["name"] == "nccl-apt"]
    expected = {deb["name"]: deb["version"] for debs in layers for deb in debs}
    form = "${Package} ${Version} ${db:Status-Status}\\n"
    found = host.run("dpkg-query --show --showformat %s", form)
    installed = {
        name: version
        for name, version, status in (line.split() for line in found.stdout.splitlines())
        if status == "installed"
    }
    check("NCCL packages", seen={name: installed.get(name) for name in expected}, expected=expected)


def test_database_is_whole(host, check):
    done = host.run("dpkg --audit")
    check("packages that are half installed", seen=done.stdout.strip(), expected="")
