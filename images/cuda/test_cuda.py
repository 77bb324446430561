"""The CUDA toolkit of the wheels, at CUDA_HOME."""


def test_cuda_home(root, env, check):
    header = root.file(env.get("CUDA_HOME", "") + "/include/cuda_runtime.h")
    check("CUDA_HOME has the runtime's headers", seen=header is not None, expected=True)


PROGRAM = """
#include <cuda/std/type_traits>
__global__ void twice(float *values) { values[threadIdx.x] *= 2; }
extern "C" int run(float *values) { twice<<<1, 32>>>(values); return cudaDeviceSynchronize(); }
"""


def test_nvcc_compiles_and_links(plan, host, check):
    """As FlashInfer does on the first start, which compiles kernels for the GPU that it finds."""
    planned = any(
        wheel["name"] == "nvidia-cuda-nvcc" for layer in plan["layers"] for wheel in layer["wheels"]
    )
    done = host.run(
        "[ -e $CUDA_HOME/bin/nvcc ] || { echo no nvcc; exit; }; "
        "d=$(mktemp -d); printf %%s %s >$d/a.cu; cd $d; "
        "$CUDA_HOME/bin/nvcc -arch=sm_121a -Xcompiler -fPIC -c a.cu -o a.o && "
        "c++ a.o -shared -L$CUDA_HOME/lib64 -L$CUDA_HOME/lib64/stubs -lcudart -lcuda -o a.so && "
        "echo built; rm -rf $d",
        PROGRAM,
    )
    seen = done.stdout.strip() or done.stderr.strip()[-1000:]
    works = "nvcc compiles for sm_121a, with its headers, and its code links with CUDA's libraries"
    title, expected = (works, "built") if planned else ("no nvcc, as planned", "no nvcc")
    check(title, seen=seen, expected=expected)
