#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/cpu.h"
#include "kernels/layout.h"

namespace selm::kernels {

ActFormat act_format(quant::Type type) {
  switch (quant::info(type).block_size) {
    case 32:
      return ActFormat::q8_32;
    case 256:
      return ActFormat::q8_256;
    default:
      return ActFormat::f32;
  }
}

Method method(const Table& table, quant::Type type, bool batched) {
  if (batched) {
    const bool quantised = act_format(type) != ActFormat::f32;
    if (quantised && table.matmul_u8 != nullptr) return {ActFormat::u8_256, table.matmul_u8};
    if ((type == quant::Type::f16 || type == quant::Type::bf16) && table.matmul_bf16 != nullptr)
      return {ActFormat::bf16, table.matmul_bf16};
  }
  return {act_format(type), table.matmul};
}

size_t act_row_bytes(ActFormat format, size_t n) {
  switch (format) {
    case ActFormat::q8_32:
      return act32_bytes(n);
    case ActFormat::q8_256:
      return act256_bytes(n);
    case ActFormat::bf16:
      return round_up(n, 32) * sizeof(uint16_t);
    case ActFormat::u8_256:
      return act_u8_bytes(n);
    case ActFormat::f32:
      break;
  }
  return round_up(n * sizeof(float), 64);
}

#if !defined(__x86_64__)
const Table* avx2_table() { return nullptr; }
const Table* avx512_table() { return nullptr; }
const Table* amx_table() { return nullptr; }
#endif
#if !defined(__aarch64__)
const Table* neon_table() { return nullptr; }
const Table* dotprod_table() { return nullptr; }
const Table* i8mm_table() { return nullptr; }
#endif

namespace {

// Tile data is large, so Linux wants each process to ask before its first use (asking again is
// harmless). Documentation/arch/x86/xstate.rst: ARCH_REQ_XCOMP_PERM, feature 18.
bool may_use_amx() {
#if defined(SELM_EMULATE_AMX)
  return cpu_features().avx512bf16;
#elif defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return cpu_features().has_amx_table() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

const Table* table(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return scalar_table();
    case Isa::avx2:
      return cpu_features().has_avx2_table() ? avx2_table() : nullptr;
    case Isa::avx512:
      return cpu_features().has_avx512_table() ? avx512_table() : nullptr;
    case Isa::amx:
      return cpu_features().has_avx512_table() && may_use_amx() ? amx_table() : nullptr;
    case Isa::neon:
      return cpu_features().neon ? neon_table() : nullptr;
    case Isa::dotprod:
      return cpu_features().has_dotprod_table() ? dotprod_table() : nullptr;
    case Isa::i8mm:
      return cpu_features().has_i8mm_table() ? i8mm_table() : nullptr;
  }
  return nullptr;
}

const Table* best() {
  const Table* found = scalar_table();
  for (const Isa isa : kAllIsas) {
    if (isa == Isa::amx) continue;  // only when asked for, until it has run on a processor that has it
    if (const Table* t = table(isa)) found = t;
  }
  return found;
}

const Table* by_name(std::string_view name) {
  for (const Isa isa : kAllIsas) {
    const Table* t = table(isa);
    if (t != nullptr && name == t->name) return t;
  }
  return nullptr;
}

}  // namespace selm::kernels
