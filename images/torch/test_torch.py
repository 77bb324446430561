"""PyTorch: built for CUDA 13."""

# Read, not imported: under emulation an import takes a minute.
PROGRAM = (
    "import importlib.util as u, runpy;"
    "folder = u.find_spec('torch').submodule_search_locations[0];"
    "print(runpy.run_path(folder + '/version.py')['cuda'])"
)


def test_cuda_build(host, check):
    seen = host.run("python3 -c %s", PROGRAM).stdout.strip().split(".")[0]
    check("torch.version.cuda (None is a CPU build)", seen=seen, expected="13")
