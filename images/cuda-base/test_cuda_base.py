"""NVIDIA's CUDA image."""


def test_version(plan, env, check):
    check("CUDA_VERSION", seen=env.get("CUDA_VERSION"), expected=plan["versions"]["cuda"])


def test_toolkit_folder(root, check):
    # A link, through the alternatives, to the folder of its version.
    folder = root.final.get(root.real("usr/local/cuda"))
    check("file type of /usr/local/cuda (5: folder)", seen=folder and folder.kind, expected="5")
