"""What every image must be, whatever its layers."""

import re

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def test_platform_of_the_config(plan, config, check):
    seen = f"{config['os']}/{config['architecture']}"
    check("platform in the image's config", seen=seen, expected=plan["platform"])


def test_platform_of_the_programs(plan, host, check):
    check(
        "machine that programs see",
        seen=host.check_output("uname -m"),
        expected=MACHINES[plan["arch"]],
    )


def test_entrypoint(plan, config, check):
    check(
        "ENTRYPOINT, in exec form",
        seen=config["config"].get("Entrypoint") or [],
        expected=list(plan["entrypoint"]),
    )


def test_cmd(plan, config, check):
    check("CMD", seen=config["config"].get("Cmd") or [], expected=list(plan["cmd"]))


def test_entrypoint_can_be_executed(plan, host, check):
    argv = [*plan["entrypoint"], *plan["cmd"]]
    found = host.run("command -v -- %s", argv[0]) if argv else None
    seen = bool(found) and host.run("test -x %s", found.stdout.strip()).rc == 0
    check(f"{argv[:1]} is in PATH and executable", seen=seen, expected=bool(argv))


def test_labels(plan, config, check):
    labels = config["config"].get("Labels") or {}
    seen = {name: labels.get(name) for name in plan["labels"]}
    check("labels", seen=seen, expected=plan["labels"])


def test_no_apt_lists_in_any_layer(ours, check):
    left = ours.every(r"^var/lib/apt/lists/(?!partial$|lock$|auxfiles$)[^/]+$")
    check("apt lists in any layer", seen=[str(one) for one in left][:20], expected=[])


def test_no_caches_or_logs_in_any_layer(ours, check):
    left = ours.every(
        r"^(var/cache/.+|var/log/.+|root/\.cache/.+|.*/\.uv-cache(/.*)?|tmp/.+)$", only_files=True
    )
    check("caches and logs in any layer", seen=[str(one) for one in left][:20], expected=[])


def test_no_certificate_of_the_building_machine(files, check):
    # Debian's own bundle is of Debian's own certificates; what a site adds lies in these places.
    left = files.every(r"^(run/ca\.pem|run/secrets/.+|usr/local/share/ca-certificates/.+)$")
    check("CA bundles brought in by the build", seen=[str(one) for one in left], expected=[])


def test_no_layer_over_4_gb(ours, check):
    seen = [number for number, size in enumerate(ours.layer_sizes()) if size > 4_000_000_000]
    check("layers over 4 GB unpacked", seen=seen, expected=[])


def test_no_file_stored_twice(ours, check):
    # What dpkg, adduser and ldconfig rewrite with every package: a few kilobytes.
    known = re.compile(
        r"^(etc/(ld\.so\.cache|ca-certificates.*|(group|gshadow|passwd|shadow)-?)|var/lib/dpkg/.+|var/lib/apt/.+)$"
    )
    seen = [path for path in ours.duplicates(min_size=1) if not known.match(path)]
    check("files stored in more than one layer", seen=seen[:20], expected=[])
