# Cross build for 64-bit Arm Linux with Debian's packages g++-aarch64-linux-gnu and qemu-user-static:
#   cmake -S . -B build/aarch64 --toolchain cmake/aarch64-linux-gnu.cmake
# The tests run under qemu, as the processor that the environment's QEMU_CPU names: max (the default,
# has everything), neoverse-n1 (sdot alone), cortex-a53 (neither sdot nor smmla).
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(triple aarch64-linux-gnu)
set(qemu qemu-aarch64)
include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
