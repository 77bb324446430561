"""What every image must be, whatever its layers."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def test_platform_of_the_programs(plan, host, check):
    machine = MACHINES[plan["arch"]]
    check(
        f"programs run as {machine} (uname -m)",
        seen=host.check_output("uname -m"),
        expected=machine,
    )


def test_package_database(host, check):
    done = host.run("dpkg --audit")
    said = done.stdout if done.rc == 0 else done.stdout + done.stderr
    check("dpkg --audit reports no problem", seen=said.strip()[:1000], expected="")
