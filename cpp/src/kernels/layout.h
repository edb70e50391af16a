// Where things lie in a row of quantised activations (private to the kernels), and the byte
// offsets of the block types. Everything here has internal linkage: the files of each instruction
// set are compiled with other flags, and the linker must never choose among their copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/kernels.h"

namespace selm::kernels {
namespace {

// A loop unrolled before anything else is done to it, so that an array of registers stays in registers:
// GCC keeps one that is indexed by a loop in memory, and copies it in every round.
template <size_t kTimes, class Body>
[[gnu::always_inline]] inline void repeat(const Body& body) {
  [&]<size_t... i>(std::index_sequence<i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<size_t, i>{}), ...);
  }
  (std::make_index_sequence<kTimes>{});
}

constexpr size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// q8_32, n elements: int8 q[n], float scale[n/32], int32 sum[n/32], each part padded with zeros:
// q to whole 128 (4 blocks), scale and sum to whole 64 bytes (16 blocks).
struct Act32 {
  const int8_t* q;
  const float* scale;
  const int32_t* sum;
};
[[maybe_unused]] constexpr size_t act32_scale_offset(size_t n) { return round_up(n, 128); }
[[maybe_unused]] constexpr size_t act32_sum_offset(size_t n) {
  return act32_scale_offset(n) + round_up(n / 32 * sizeof(float), 64);
}
[[maybe_unused]] constexpr size_t act32_bytes(size_t n) {
  return act32_sum_offset(n) + round_up(n / 32 * sizeof(int32_t), 64);
}
[[maybe_unused]] inline Act32 act32(const std::byte* row, size_t n) {
  return {reinterpret_cast<const int8_t*>(row), reinterpret_cast<const float*>(row + act32_scale_offset(n)),
          reinterpret_cast<const int32_t*>(row + act32_sum_offset(n))};
}

// q8_256, n elements: int8 q[n], int16 sum[n/16] (of 16 each), float scale[n/256]; sum and scale
// padded with zeros to whole 64 bytes.
struct Act256 {
  const int8_t* q;
  const int16_t* sum;
  const float* scale;
};
[[maybe_unused]] constexpr size_t act256_sum_offset(size_t n) { return n; }
[[maybe_unused]] constexpr size_t act256_scale_offset(size_t n) { return n + round_up(n / 8, 64); }
[[maybe_unused]] constexpr size_t act256_bytes(size_t n) {
  return act256_scale_offset(n) + round_up(n / 256 * sizeof(float), 64);
}
[[maybe_unused]] inline Act256 act256(const std::byte* row, size_t n) {
  return {reinterpret_cast<const int8_t*>(row), reinterpret_cast<const int16_t*>(row + act256_sum_offset(n)),
          reinterpret_cast<const float*>(row + act256_scale_offset(n))};
}

// u8_256, n elements: uint8 q[n] (value + 128), float scale[n/256 rounded up]; q padded to whole 64 with
// 128, scale with zeros to whole 64 bytes.
[[maybe_unused]] constexpr size_t act_u8_scale_offset(size_t n) { return round_up(n, 64); }
[[maybe_unused]] constexpr size_t act_u8_bytes(size_t n) {
  return act_u8_scale_offset(n) + round_up((n + 255) / 256 * sizeof(float), 64);
}

// A block whose largest magnitude is below this is stored as zeros: 127 / amax must stay finite.
[[maybe_unused]] constexpr float kTinyBlock = 1e-30f;

}  // namespace

// Table::matmul_u8 of the scalar table; scalar_u8.cpp.
void scalar_matmul_u8(quant::Type type, const std::byte* weights, size_t n_rows, size_t n,
                      const std::byte* acts, size_t n_cols, float* out, size_t ldo);

// One table per instruction set; nullptr in builds without it. Ask the processor first.
const Table* scalar_table();
const Table* avx2_table();
const Table* avx512_table();
const Table* amx_table();
const Table* neon_table();
const Table* dotprod_table();
const Table* i8mm_table();

}  // namespace selm::kernels
