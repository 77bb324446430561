"""NVIDIA's CUDA image."""


def test_version(plan, config, check):
    env = dict(one.split("=", 1) for one in config["config"].get("Env") or ())
    check("CUDA_VERSION", seen=env.get("CUDA_VERSION"), expected=plan["versions"]["cuda"])


def test_toolkit_folder(host, check):
    seen = host.run("test -d /usr/local/cuda/ && echo there").stdout.strip()
    check("/usr/local/cuda", seen=seen, expected="there")
