"""The GPU engine: the hot operations as Triton kernels on tensors that stay on the device, and the fits made of them.

Every operation exists twice with one signature: in Triton, and in plain torch (`inrtomo.gpu.plain`,
`inrtomo.gpu.plain_field`), which runs wherever torch does, is what the kernels are measured against, and stands in for
them where Triton is not. `inrtomo.gpu.operations.of` chooses. ``TRITON_INTERPRET=1`` runs the kernels on the CPU in
Triton's interpreter: slow, and what the tests use.
"""
