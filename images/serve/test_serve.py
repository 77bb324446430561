"""What a container of this image is given. That its command starts, its own answer says."""


def test_environment_for_the_gpu(env, check):
    names = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
    check(
        "what the NVIDIA runtime is told",
        seen={name: env.get(name) for name in names},
        expected={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
    )
