"""Pins of wheels and of Debian packages in real builds: where they are installed, and from what."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

from tests.lab import servers, standins, wheelhouse
from tests.lab.apt_maker import Archive, Key
from tests.lab.conftest import PROJECT, REPOSITORY, Lab

USER, PASSWORD = "team", "only-for-this-test"
SERVER = """
import base64, functools, http.server
class Private(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        login = base64.b64encode(b"{user}:{password}").decode()
        if self.headers.get("Authorization") == "Basic " + login:
            return super().do_GET()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.end_headers()
handler = functools.partial(Private, directory="/srv")
http.server.ThreadingHTTPServer(("", 80), handler).serve_forever()
"""
RECORD = """
import base64, csv, hashlib, importlib.metadata, pathlib, sys
found = importlib.metadata.distribution(sys.argv[1])
for path, digest, _ in csv.reader(found.read_text("RECORD").splitlines()):
    data = pathlib.Path(found.locate_file(path)).read_bytes()
    made = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    assert digest in ("", "sha256=" + made), path
print(found.version, found.locate_file(""))
"""
OLD = """\
FROM layer AS old
RUN python3 -B -m venv --without-pip /opt/conda
COPY site /opt/conda/lib/python3.13/site-packages
"""
BUILT = """\
FROM layer AS built
RUN --mount=type=tmpfs,target=/run \\
    --mount=type=tmpfs,target=/tmp \\
    --mount=type=bind,from=tools,target=/run/tools \\
    --mount=type=bind,from=sdist,target=/run/sdist \\
    . /run/tools/step.sh; \\
    /opt/build/bin/python -m pip install --no-deps --no-index --no-build-isolation --no-compile \\
        --no-cache-dir --target /usr/local/lib/python3.13/dist-packages /run/sdist/*.tar.gz; \\
    tidy
"""
SDIST = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "lab-built"
version = "3.0"
[tool.setuptools]
py-modules = ["lab_built"]
""",
    "lab_built.py": "text = 'built'\n",
}
INDEX: dict[str, dict[str, str | bytes]] = {
    "lab_standin": {"lab_standin.py": "def main():\n    print('new')\n"},
    "lab_alike": {
        "lab_alike/__init__.py": "its own", "lab_alike/E=1,N=2.json": "{}", "lab_both.py": "a",
        "lab_same.py": "same",
    },
    # Comes after it, with the same paths.
    "lab_other": {
        "lab_alike/__init__.py": "of another", "lab_alike/E=1,N=2.json": "[]", "lab_both.py": "b",
        "lab_same.py": "same",
    },
}  # fmt: skip
INFO = "lab_standin-1.0.dist-info"
OLD_FILES = {
    "lab_standin_old.py": "old\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: lab-standin\nVersion: 1.0\n",
    f"{INFO}/RECORD": f"lab_standin_old.py,,\n{INFO}/METADATA,,\n{INFO}/RECORD,,\n",
}


def test_places_indexes_and_suites(lab: Lab, tmp_path: Path) -> None:
    """A venv that is made, a prefix with an older version in it, an index with a login that steps
    can reach, too, a package of a suite that needs what lies below, and a project without a wheel.
    """
    for name, files in INDEX.items():
        index = tmp_path / "index" / "simple" / name.replace("_", "-")
        scripts = {"lab-standin": "lab_standin:main"} if name == "lab_standin" else None
        made = standins.wheel(index, name, "2.0", files, scripts=scripts)
        (index / "index.html").write_text(f'<a href="{made.name}">{made.name}</a>\n')
    key = Key.make(tmp_path / "gnupg")
    archive = Archive(folder=tmp_path / "archive", key=key)
    archive.add("lab", "lab-tool", "1.0", arch="amd64", Depends="python3, lab-data")
    archive.add("lab", "lab-data", "1.0", arch="all")
    archive.publish()
    with tarfile.open(archive.folder / "lab_built-3.0.tar.gz", "w:gz") as sdist:
        for path, text in SDIST.items():
            member = tarfile.TarInfo(f"lab_built-3.0/{path}")
            member.size = len(text)
            sdist.addfile(member, io.BytesIO(text.encode()))
    project = tmp_path / "project"
    (project / "images").mkdir(parents=True)
    for one in (PROJECT / "images").iterdir():
        (project / "images" / one.name).symlink_to(one)
    (project / "wheels").symlink_to(lab.project / "wheels")
    (project / "building").mkdir()
    building = [wheel for wheel in wheelhouse.BUILDING if wheel.name in ("pip", "setuptools")]
    for wheel in building:
        (project / "building" / wheel.file).symlink_to(wheelhouse.fetch(wheel))
    (project / "key.asc").write_bytes(key.public(armored=True))
    script = SERVER.format(user=USER, password=PASSWORD)
    server = str(
        lab.docker.run(
            lab.plain("amd64"), ["-c", script], entrypoint="python3", detach=True, remove=True,
            volumes=[(tmp_path / "index", "/srv", "ro")],
        ).id
    )  # fmt: skip
    try:
        host = str(lab.docker.container.inspect(server).network_settings.ip_address)
        with servers.http_folder(archive.folder) as web:
            mine = Lab(project, lab.context.store.root, lab.engine)
            mine.add_layer("old", OLD)
            mine.add_layer("built", BUILT)
            for path, text in OLD_FILES.items():
                file = project / "images" / "old" / "site" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            vllm = {"kind": "wheels", "python": "3.13", "find_links": "wheels", "deps": False}
            data = lab.data | {
                "axes": {}, "exclude": [], "groups": {"default": ["places"]},
                "pins": {
                    "debian": lab.data["pins"]["debian"],
                    "vllm": {"1": {**vllm, "require": ["vllm==0.32.0+standin"]}},
                    "tool": {"2": {
                        "kind": "wheels", "python": "3.13",
                        "require": [f"{name}==2.0" for name in INDEX],
                        "index": [f"http://{USER}:{PASSWORD}@{host}/simple"],
                    }},
                    "building": {"3": {
                        "kind": "wheels", "python": "3.13", "find_links": "building",
                        "deps": False, "require": [f"{w.name}=={w.version}" for w in building],
                    }},
                    "sdist": {"3": {"kind": "file", "url": f"{web.url}/lab_built-3.0.tar.gz"}},
                    "tools": {"lab": {
                        "kind": "deb", "suite": "lab", "repository": {"linux/amd64": web.url},
                        "packages": ["lab-tool"], "key": "key.asc",
                    }},
                },
                "layers": {
                    "debian": {"base": "debian"},
                    "python": {"debs": "debian"},
                    "old": {},
                    "venv": {"wheels": {"pin": "vllm", "into": "/opt/venv"}},
                    "conda": {"wheels": {"pin": "tool", "into": "/opt/conda"}},
                    "suite": {"debs": "tools"},
                    "building": {"wheels": {"pin": "building", "into": "/opt/build"}},
                    "built": {"inputs": {"sdist": "sdist"}},
                },
            }  # fmt: skip
            data["include"] = [{
                "name": "places", "platform": "linux/amd64", "layers": list(data["layers"]),
                "entrypoint": [],
                "pins": {
                    "debian": "trixie", "vllm": "1", "tool": "2", "tools": "lab",
                    "building": "3", "sdist": "3",
                },
            }]  # fmt: skip
            mine.write(data)
            shutil.copy(lab.project / "matrix.lock", project)
            done = mine.run("lock")
            assert done.returncode == 0, done.stderr
            locked = (project / "matrix.lock").read_text()
            # Python lies below; what it needs beside that is locked.
            assert [line.split()[2] for line in locked.splitlines() if "- deb lab-" in line] == [
                "lab-data", "lab-tool",
            ]  # fmt: skip
            built = mine.run("image", "places")
            assert built.returncode == 0, built.stderr
        told = [locked, done.stdout, done.stderr, built.stdout, built.stderr]
        told += [mine.run("image", "places", "--print", kind).stdout for kind in ("json", "bake")]
        stored = mine.store.resolve(f"{REPOSITORY}:places")
        told.append(json.dumps(stored.config))
        assert not any(PASSWORD in text for text in told)
        image = f"{REPOSITORY}:places"

        def run(program: str, *words: str) -> str:
            said = lab.docker.run(image, [*words], entrypoint=program, remove=True)
            return str(said).strip()

        venv, conda = "/opt/venv", "/opt/conda"
        assert "stand-in vllm" in run(f"{venv}/bin/vllm", "x")
        assert run(f"{conda}/bin/lab-standin") == "new"
        both = ((venv, "vllm", "0.32.0+standin"), (conda, "lab-standin", "2.0"))
        for place, name, version in both:
            said = run(f"{place}/bin/python", "-c", RECORD, name)
            assert said.split() == [version, f"{place}/lib/python3.13/site-packages"]
        # The older version is gone, and nothing of both is where the others are.
        site = f"{conda}/lib/python3.13/site-packages"
        assert [one for one in run("ls", site).split() if one.startswith("lab_standin")] == [
            "lab_standin-2.0.dist-info", "lab_standin.py",
        ]  # fmt: skip
        # Of two wheels the one that the folder is named after, else the last by name.
        assert [run("cat", f"{site}/{path}") for path in INDEX["lab_other"]] == [
            "its own", "{}", "b", "same",
        ]  # fmt: skip
        dist = "/usr/local/lib/python3.13/dist-packages"
        assert run("find", dist, "-name", "*.dist-info") == f"{dist}/lab_built-3.0.dist-info"
        assert run("python3", "-c", "import lab_built; print(lab_built.text)") == "built"
        assert run("cat", "/opt/lab-tool", "/opt/lab-data") == "1.01.0"
        mine.said.close()
    finally:
        lab.docker.container.remove(server, force=True)
        key.stop()
