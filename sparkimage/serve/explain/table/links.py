"""What the entries point to: commands of this project, and where messages were found."""

VLLM = "https://github.com/vllm-project/vllm/issues/"
NCCL = "https://github.com/NVIDIA/nccl/issues/"
DOCTOR = "`python build.py doctor --nodes fleet.yaml`"
LAUNCH = "`python build.py launch`"
