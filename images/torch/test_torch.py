"""PyTorch as Python imports it. The static tier checks the CUDA that its files name."""


def test_cuda_of_the_torch_that_python_imports(plan, torch, check):
    seen, expected = str(torch["cuda"]), plan["expect"]["cuda"]
    if expected is not None:
        # Of 13 the major version, of 13.0 both.
        parts = expected.split(".")[:2]
        seen, expected = ".".join(seen.split(".")[: len(parts)]), ".".join(parts)
    check("torch.version.cuda (None: a CPU build)", seen=seen, expected=expected or seen)
