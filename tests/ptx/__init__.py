"""A functional interpreter of PTX for sm_80: runs what Triton and nvcc compile, with no GPU, and checks every access.

`launch.py` compiles a Triton kernel and runs it on CPU tensors; `machine.py` runs any PTX text.

    parser.py, operands.py      text -> Kernel
    operations.py               the table opcode -> operation; Kernel -> steps that hold no text
    decode.py, elementwise.py   what operations are made of: modifiers, sources, destinations, undefined bits
    integer.py floating.py convert.py compare.py control.py access.py atomics.py copies.py warp.py tensor_core.py
    lanes.py                    the registers of the lanes that run together, and which of them run next
    machine.py                  CTAs, the order of the warps, barriers, reports
    memory.py shared_memory.py local_memory.py scalars.py
    traffic.py                  sectors of global memory and turns of the banks, beside the fewest possible

A new instruction is a builder in the file of its family, entered in the OPERATIONS below it, and a case in
tests/ptx_cases.py.
"""
