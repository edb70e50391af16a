// What this machine offers to this process: instruction sets and cores. Asked anew at each call
// (no globals); cheap enough for start-up, not for inner loops.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace selm {

// Each flag is set only where the processor has it and the operating system saves its registers.
struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
  bool amx_tile = false;  // Linux also wants arch_prctl(ARCH_REQ_XCOMP_PERM) before the first use
  bool amx_int8 = false;
  bool amx_bf16 = false;
  bool neon = false;     // aarch64's Advanced SIMD
  bool dotprod = false;  // sdot
  bool i8mm = false;     // smmla

  // What the kernel tables are compiled for.
  bool has_avx2_table() const { return avx2 && fma && f16c; }
  bool has_avx512_table() const {
    return has_avx2_table() && avx512f && avx512bw && avx512dq && avx512vl && avx512vnni;
  }
  bool has_amx_table() const { return has_avx512_table() && avx512bf16 && amx_tile && amx_int8 && amx_bf16; }
  bool has_dotprod_table() const { return neon && dotprod; }
  bool has_i8mm_table() const { return has_dotprod_table() && i8mm; }
};
CpuFeatures cpu_features();

// Cores that this process should keep busy: those of its affinity mask, of the fast kind where there
// are two, or less where a cgroup limits it. >= 1. More threads than it has cores wait for each other's
// time slices and run many times slower; a slow core holds up the fast ones.
unsigned usable_cores();

// How many of these processors (by number) are not slow ones; `root` is /sys/devices. Slow are Intel's
// "atom" cores, and those of less than half the greatest capacity (Arm). All, where none or all are.
unsigned fast_cores(std::span<const uint32_t> processors, const std::string& root);

// Cores that a CPU quota allows, rounded to the nearest, at least 1; 0: no limit. `membership` is
// the text of /proc/self/cgroup, `root` where the hierarchies are mounted (/sys/fs/cgroup). Both
// versions; the tightest limit from the process's group up to the root counts.
unsigned cgroup_cores(std::string_view membership, const std::string& root);

}  // namespace selm
