#include "base/cpu.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace selm {

#if defined(__x86_64__)
namespace {

// Register states that the operating system saves (XCR0). Needs OSXSAVE.
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

constexpr bool bit(uint32_t word, unsigned n) { return ((word >> n) & 1u) != 0; }

}  // namespace

// Bits: Intel SDM volume 2A, CPUID; volume 1, section 13.3 (XCR0).
CpuFeatures cpu_features() {
  CpuFeatures f;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return f;
  const uint32_t c1 = c;
  if (!bit(c1, 27)) return f;  // OSXSAVE
  const uint64_t states = saved_states();
  const bool ymm = (states & 0x6) == 0x6;
  const bool zmm = (states & 0xe6) == 0xe6;
  const bool tiles = (states & 0x60000) == 0x60000;
  if (!ymm || !bit(c1, 28)) return f;  // AVX
  f.fma = bit(c1, 12);
  f.f16c = bit(c1, 29);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  f.avx2 = bit(b, 5);
  f.avx512f = zmm && bit(b, 16);
  f.avx512dq = f.avx512f && bit(b, 17);
  f.avx512bw = f.avx512f && bit(b, 30);
  f.avx512vl = f.avx512f && bit(b, 31);
  f.avx512vnni = f.avx512f && bit(c, 11);
  f.amx_bf16 = tiles && bit(d, 22);
  f.amx_tile = tiles && bit(d, 24);
  f.amx_int8 = tiles && bit(d, 25);
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.avx512bf16 = f.avx512f && bit(a, 5);
  return f;
}
#elif defined(__aarch64__) && defined(__linux__)
// Bits: Linux, Documentation/arch/arm64/elf_hwcaps.rst (older headers lack the later names).
CpuFeatures cpu_features() {
  constexpr unsigned long kAsimd = 1ul << 1, kAsimdDp = 1ul << 20, kI8mm = 1ul << 13;
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  CpuFeatures f;
  f.neon = (caps & kAsimd) != 0;
  f.dotprod = (caps & kAsimdDp) != 0;
  f.i8mm = (caps2 & kI8mm) != 0;
  return f;
}
#elif defined(__aarch64__) && defined(__APPLE__)
namespace {

bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

CpuFeatures cpu_features() {
  CpuFeatures f;
  f.neon = true;
  f.dotprod = has_feature("hw.optional.arm.FEAT_DotProd");
  f.i8mm = has_feature("hw.optional.arm.FEAT_I8MM");
  return f;
}
#elif defined(__aarch64__)
CpuFeatures cpu_features() {
  CpuFeatures f;
  f.neon = true;  // part of every aarch64 processor that runs an operating system
  return f;
}
#else
CpuFeatures cpu_features() { return {}; }
#endif

namespace {

// The first `size` bytes of a small text file; nothing if it cannot be read.
std::optional<std::string> read_small(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return std::nullopt;
  std::string text(8192, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

// The number at the start of text; nothing for "max", "-1" or any other text.
std::optional<uint64_t> number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end == text.data()) return std::nullopt;
  return value;
}

// Quota and period in microseconds of one group: version 2 "cpu.max", version 1 two files.
unsigned limit_of_group(const std::string& folder, bool v2) {
  std::optional<uint64_t> quota, period;
  if (v2) {
    const std::optional<std::string> text = read_small(folder + "/cpu.max");
    if (!text) return 0;
    quota = number(*text);
    const size_t space = text->find(' ');
    if (space != std::string::npos) period = number(std::string_view(*text).substr(space + 1));
  } else {
    const std::optional<std::string> q = read_small(folder + "/cpu.cfs_quota_us");
    const std::optional<std::string> p = read_small(folder + "/cpu.cfs_period_us");
    if (q) quota = number(*q);
    if (p) period = number(*p);
  }
  constexpr uint64_t kMost = 1u << 20;
  if (!quota || !period || *period == 0 || *quota / *period >= kMost) return 0;
  const uint64_t rounded = *quota / *period + (*quota % *period >= *period - *period / 2 ? 1 : 0);
  return static_cast<unsigned>(std::max<uint64_t>(rounded, 1));
}

unsigned tighter(unsigned a, unsigned b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// The tightest limit from a group up to the root of its hierarchy. In a container the path may
// name a group outside of what is mounted; then only the root answers, which is right.
unsigned limit_of_path(const std::string& hierarchy, std::string_view path, bool v2) {
  unsigned limit = 0;
  while (path.size() > 1) {
    limit = tighter(limit, limit_of_group(hierarchy + std::string(path), v2));
    const size_t slash = path.rfind('/');
    path = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
  }
  return tighter(limit, limit_of_group(hierarchy, v2));
}

bool has_controller(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    if (list.substr(0, comma) == name) return true;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return false;
}

// The processors that this process may run on; none where the system does not say.
std::vector<uint32_t> affinity() {
  std::vector<uint32_t> processors;
#if defined(__linux__)
  // 4096 bits: more than a fixed cpu_set_t holds, as large machines refuse too small a mask.
  constexpr uint32_t kBits = 8 * sizeof(unsigned long);
  unsigned long mask[4096 / kBits] = {};
  if (sched_getaffinity(0, sizeof mask, reinterpret_cast<cpu_set_t*>(mask)) == 0) {
    for (uint32_t i = 0; i < 4096; ++i) {
      if ((mask[i / kBits] >> (i % kBits) & 1) != 0) processors.push_back(i);
    }
  }
#endif
  return processors;
}

// Whether a list of the kernel's ("0-3,8,10-11") has the number.
bool in_list(std::string_view list, uint64_t wanted) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    const std::string_view part = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    const std::optional<uint64_t> first = number(part);
    const size_t dash = part.find('-');
    const std::optional<uint64_t> last = dash < part.size() ? number(part.substr(dash + 1)) : first;
    if (first && last && *first <= wanted && wanted <= *last) return true;
  }
  return false;
}

}  // namespace

unsigned cgroup_cores(std::string_view membership, const std::string& root) {
  unsigned limit = 0;
  while (!membership.empty()) {
    const size_t line_end = std::min(membership.find('\n'), membership.size());
    const std::string_view line = membership.substr(0, line_end);
    membership.remove_prefix(std::min(line_end + 1, membership.size()));
    const size_t first = line.find(':');
    if (first == std::string_view::npos) continue;
    const size_t second = line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view path = line.substr(second + 1);
    if (controllers.empty()) {
      limit = tighter(limit, limit_of_path(root, path, true));
    } else if (has_controller(controllers, "cpu")) {
      // Mounted as "cpu" or under the whole list ("cpu,cpuacct"); one is often a link to the other.
      limit = tighter(limit, limit_of_path(root + "/cpu", path, false));
      limit = tighter(limit, limit_of_path(root + "/" + std::string(controllers), path, false));
    }
  }
  return limit;
}

unsigned fast_cores(std::span<const uint32_t> processors, const std::string& root) {
  const std::string slow = read_small(root + "/cpu_atom/cpus").value_or("");
  std::vector<uint64_t> capacities;
  uint64_t greatest = 0;
  for (const uint32_t i : processors) {
    const std::string file = root + "/system/cpu/cpu" + std::to_string(i) + "/cpu_capacity";
    capacities.push_back(number(read_small(file).value_or("")).value_or(UINT64_MAX));
    if (capacities.back() != UINT64_MAX) greatest = std::max(greatest, capacities.back());
  }
  unsigned fast = 0;
  for (size_t i = 0; i < processors.size(); ++i) {
    if (!in_list(slow, processors[i]) && capacities[i] >= greatest - greatest / 2) ++fast;
  }
  return fast == 0 ? static_cast<unsigned>(processors.size()) : fast;
}

unsigned usable_cores() {
  const std::vector<uint32_t> allowed = affinity();
#if defined(__linux__)
  const unsigned fast = fast_cores(allowed, "/sys/devices");
  if (const std::optional<std::string> membership = read_small("/proc/self/cgroup"); membership && fast > 0) {
    if (const unsigned quota = cgroup_cores(*membership, "/sys/fs/cgroup"); quota != 0) {
      return std::min(fast, quota);
    }
  }
  if (fast > 0) return fast;
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace selm
