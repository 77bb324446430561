"""What a Debian root makes true."""

import re


def test_suite(plan, host, check):
    release = host.file("/etc/os-release").content_string
    seen = re.search(r"^VERSION_CODENAME=(\S+)$", release, re.MULTILINE)
    check(
        "Debian suite",
        seen=seen and seen[1],
        expected=plan["layers"][0]["root"]["suite"],
    )


def test_bundle_holds_debian_certificates_only(host, check):
    program = (
        "p=/etc/ssl/certs/ca-certificates.crt; [ -e $p ] || exit 0; "
        "n=$(grep -c BEGIN $p); m=$(cat /usr/share/ca-certificates/mozilla/*.crt | grep -c BEGIN); "
        "[ $n = $m ] || echo $n certificates where Debian has $m"
    )
    check("system CA bundle", seen=host.run(program).stdout.strip(), expected="")
