"""PyTorch: built for CUDA 13."""


def test_cuda_build(root, check):
    versions = [str(e.seen["cuda"]) for e in root.final.values() if "cuda" in e.seen]
    check(
        "major version of CUDA in torch/version.py (None: a CPU build)",
        seen=[version.partition(".")[0] for version in versions],
        expected=["13"],
    )


def test_cuda_of_the_torch_that_python_imports(torch, check):
    seen = str(torch["cuda"]).partition(".")[0]
    check("torch.version.cuda (None: a CPU build)", seen=seen, expected="13")
