"""A functional interpreter of PTX for sm_80: runs what Triton and nvcc compile, with no GPU, and checks every access.

`launch.py` compiles a Triton kernel and runs it on CPU tensors; `machine.launch` runs any PTX text.
"""
