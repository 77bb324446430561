"""The CUDA toolkit of the wheels, at CUDA_HOME."""


def test_cuda_home(root, env, check):
    header = root.file(env.get("CUDA_HOME", "") + "/include/cuda_runtime.h")
    check("CUDA_HOME has the runtime's headers", seen=header is not None, expected=True)
