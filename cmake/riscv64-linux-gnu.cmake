# Cross build for 64-bit RISC-V Linux with Debian's packages g++-riscv64-linux-gnu and qemu-user-static:
#   cmake --preset riscv64
# The tests run under qemu. Kernels are the scalar ones.
set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(triple riscv64-linux-gnu)
set(qemu qemu-riscv64)
include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
