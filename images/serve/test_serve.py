"""The environment for the NVIDIA runtime. `entrypoint-answers` checks the command."""


def test_environment_for_the_gpu(env, check):
    names = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
    check(
        "the environment asks the NVIDIA runtime for every GPU",
        seen={name: env.get(name) for name in names},
        expected={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
    )
