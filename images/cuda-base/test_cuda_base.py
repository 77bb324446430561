"""NVIDIA's CUDA image."""


def test_version(plan, env, check):
    version = plan["versions"]["cuda"]
    check(f"CUDA_VERSION is {version}", seen=env.get("CUDA_VERSION"), expected=version)


def test_toolkit_folder(root, check):
    # A link, through the alternatives, to the folder of its version.
    folder = root.final.get(root.real("usr/local/cuda"))
    seen = "a folder" if folder is not None and folder.kind == "5" else "no folder"
    check("/usr/local/cuda leads to a folder", seen=seen, expected="a folder")
