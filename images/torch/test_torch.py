"""PyTorch as Python imports it. The static tier checks the CUDA that its files name."""


def test_cuda_of_the_torch_that_python_imports(plan, torch, check):
    seen, expected = str(torch["cuda"]), plan["expect"]["cuda"]
    if expected is not None:
        # Of 13 the major version, of 13.0 both.
        parts = expected.split(".")[:2]
        seen, expected = ".".join(seen.split(".")[: len(parts)]), ".".join(parts)
    expected = expected or seen
    built = "without CUDA" if expected == "None" else f"for CUDA {expected}"
    check(f"the torch that Python imports is built {built}", seen=seen, expected=expected)
