"""What a container of this image starts."""


def test_environment_for_the_gpu(config, check):
    env = dict(one.split("=", 1) for one in config["config"].get("Env") or ())
    seen = {
        name: env.get(name) for name in ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
    }
    check(
        "what the NVIDIA runtime is told",
        seen=seen,
        expected={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
    )


def test_command_starts(plan, host, check):
    # The interpreter and the script, without the imports that need a GPU's driver.
    program = 'python3 -c "import ast; ast.parse(open(%s).read()); print(1)"'
    found = host.run("command -v -- %s", plan["entrypoint"][0]).stdout.strip()
    check("the command's script", seen=host.run(program % repr(found)).stdout.strip(), expected="1")
