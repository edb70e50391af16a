# Cross build for 32-bit Arm (ARMv7 with VFP) Linux with Debian's packages g++-arm-linux-gnueabihf and qemu-user-static:
#   cmake --preset armv7
# The tests run under qemu. Kernels are the scalar ones.
set(CMAKE_SYSTEM_PROCESSOR armv7l)
set(triple arm-linux-gnueabihf)
set(qemu qemu-arm)
include(${CMAKE_CURRENT_LIST_DIR}/cross.cmake)
