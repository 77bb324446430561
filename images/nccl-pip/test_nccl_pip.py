"""One NCCL, the pinned one, wherever it is looked for."""

import json
import posixpath

import pytest

MACHINES = {"amd64": 62, "arm64": 183}  # e_machine: EM_X86_64, EM_AARCH64

PROGRAM = """
import ctypes, json, os, re, struct, sys

def soname(path):
    # The dynamic section of a 64-bit little-endian ELF: https://refspecs.linuxfoundation.org/elf/elf.pdf
    with open(path, "rb") as f:
        head = f.read(64)
        if head[:4] != b"\\x7fELF":
            return None, 0
        machine, = struct.unpack_from("<H", head, 18)
        phoff, = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        f.seek(phoff)
        heads = [struct.unpack("<IIQQQQQQ", f.read(size)[:56]) for _ in range(count)]
        loads = [h for h in heads if h[0] == 1]
        def at(address):
            return next(address - h[3] + h[2] for h in loads if h[3] <= address < h[3] + h[6])
        dynamic = next(h for h in heads if h[0] == 2)
        f.seek(dynamic[2])
        tags = dict(reversed(list(struct.iter_unpack("<qQ", f.read(dynamic[5] // 16 * 16)))))
        if 14 not in tags:
            return None, machine
        f.seek(at(tags[5]) + tags[14])
        return f.read(100).split(b"\\0")[0].decode(), machine

def version(path):
    answer = ctypes.c_int()
    try:
        ctypes.CDLL(path).ncclGetVersion(ctypes.byref(answer))
    except (OSError, AttributeError) as error:
        return str(error)
    return answer.value

found = {}
for folder, folders, names in os.walk("/"):
    skipped = ("/proc", "/sys", "/dev", "/run")
    folders[:] = [d for d in folders if os.path.join(folder, d) not in skipped]
    for name in names:
        if re.match(r"libnccl\\.so", name):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if not os.path.exists(real):
                real += " (missing)"
            found[path] = {"real": real, "soname": soname(real) if os.path.exists(real) else None}
preload = os.environ.get("LD_PRELOAD", "")
print(json.dumps({"found": found, "preload": preload,
    "preload_version": version(preload) if preload else None,
    "versions": {p: version(p) for p in {f["real"] for f in found.values()}}}))
"""


IMPORT = """
import ctypes, json, re, torch
maps = sorted({line.split()[-1] for line in open("/proc/self/maps") if "libnccl.so" in line})
version = ctypes.c_int()
if maps:
    ctypes.CDLL(maps[0]).ncclGetVersion(ctypes.byref(version))
print(json.dumps({"maps": maps, "nccl": version.value}))
"""


@pytest.fixture(scope="module")
def system(plan):
    return f"/usr/lib/{plan['triplet']}/libnccl.so.{plan['versions']['nccl']}"


@pytest.fixture(scope="module")
def code(plan):
    major, minor, patch = (int(part) for part in plan["versions"]["nccl"].split("."))
    return major * 10000 + minor * 100 + patch


@pytest.fixture(scope="module")
def seen_in_image(host):
    # Without the preload, so that a missing or broken one cannot keep the program from starting.
    done = host.run(
        'p="$LD_PRELOAD"; unset LD_PRELOAD; python3 -c %s "$p"',
        PROGRAM.replace('os.environ.get("LD_PRELOAD", "")', "sys.argv[1]"),
    )
    assert done.rc == 0, done.stderr[-1500:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_one_physical_copy(seen_in_image, system, check):
    seen = sorted({one["real"] for one in seen_in_image["found"].values()})
    check("files behind every libnccl.so*", seen=seen, expected=[system])


def test_places(plan, seen_in_image, system, check):
    dist = f"/usr/local/lib/python{plan['python']}/dist-packages"
    folder = posixpath.dirname(system)
    expected = [system, f"{folder}/libnccl.so.2", f"{dist}/nvidia/nccl/lib/libnccl.so.2"]
    layers = [layer["debs"]["debs"] for layer in plan["layers"] if layer["debs"]]
    debs = {deb["name"] for given in layers for deb in given}
    if "libnccl-dev" in debs:
        expected.append(f"{folder}/libnccl.so")
    check("every libnccl.so*", seen=sorted(seen_in_image["found"]), expected=sorted(expected))


def test_soname_and_architecture(plan, seen_in_image, check):
    seen = sorted({tuple(one["soname"] or ()) for one in seen_in_image["found"].values()})
    expected = [["libnccl.so.2", MACHINES[plan["arch"]]]]
    check("SONAME and machine of every copy", seen=seen, expected=expected)


def test_version_of_every_copy(seen_in_image, code, check):
    seen = sorted({str(version) for version in seen_in_image["versions"].values()})
    check("ncclGetVersion() of every copy", seen=seen, expected=[str(code)])


def test_no_other_copy_in_our_layers(ours, system, check):
    # A base image that we did not make may hold an older one below; what is added must not.
    seen = sorted({one.path for one in ours.every(r"(^|/)libnccl\.so[^/]*$", only_files=True)})
    check("libnccl files in any layer of ours", seen=seen, expected=[system.lstrip("/")])


def test_no_other_copy_in_the_root(files, system, check):
    found = {p for p, one in files.final.items() if one.is_file and "/libnccl.so" in f"/{p}"}
    check("libnccl files that a container sees", seen=sorted(found), expected=[system.lstrip("/")])


def test_preload_names_the_library(config, system, check):
    env = dict(one.split("=", 1) for one in config["config"].get("Env") or ())
    check("LD_PRELOAD", seen=env.get("LD_PRELOAD"), expected=system)


def test_preload_file_is_there(host, check):
    seen = host.run('for p in $(echo "$LD_PRELOAD" | tr : " "); do [ -f "$p" ] || echo "$p"; done')
    check("LD_PRELOAD entries that do not exist", seen=seen.stdout.split(), expected=[])


def test_preload_is_obeyed(host, check):
    # glibc goes on with one line on stderr where it cannot preload.
    check("what ld.so says at a program's start", seen=host.run("true").stderr.strip(), expected="")


def test_version_of_the_preload(seen_in_image, code, check):
    check("ncclGetVersion() of LD_PRELOAD", seen=seen_in_image["preload_version"], expected=code)


@pytest.fixture(scope="module")
def imported(host):
    # One import serves every check: under emulation it takes a minute.
    done = host.run("python3 -c %s", IMPORT)
    assert done.rc == 0, done.stderr[-1500:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_torch_maps_exactly_one_nccl(imported, system, check):
    check("libnccl mapped by `import torch`", seen=imported["maps"], expected=[system])


def test_mapped_nccl_answers_the_pin(imported, code, check):
    # torch.cuda.nccl.version() says what torch was compiled with: it is not asked.
    check("ncclGetVersion() of the mapped library", seen=imported["nccl"], expected=code)


def test_linker_cache_knows_it(host, system, check):
    program = (
        "ldconfig -p | sed -n 's/^[[:space:]]*libnccl.so.2 .*=> //p' | xargs -r -n 1 readlink -f"
    )
    check(
        "libnccl.so.2 by the linker's cache",
        seen=host.run(program).stdout.split(),
        expected=[system],
    )
