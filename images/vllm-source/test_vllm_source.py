"""vLLM, built from the fork by its own Dockerfile."""


def test_place(plan, host, check):
    # Where the patches expect its files.
    program = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    seen = host.run("python3 -c %s", program).stdout.strip()
    expected = f"/usr/local/lib/python{plan['python']}/dist-packages/vllm"
    check("folder of the vllm package", seen=seen, expected=expected)
