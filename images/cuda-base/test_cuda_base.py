"""NVIDIA's CUDA image."""


def test_version(plan, env, check):
    check("CUDA_VERSION", seen=env.get("CUDA_VERSION"), expected=plan["versions"]["cuda"])


def test_toolkit_folder(root, check):
    folder = root.real("usr/local/cuda")
    found = folder is not None and any(path.startswith(f"{folder}/") for path in root.final)
    check("/usr/local/cuda is a folder with files", seen=found, expected=True)
