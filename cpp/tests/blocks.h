// Random rows of any block type for the tests and benchmarks of the kernels: every code and every
// small scale occurs, the half-precision scales are finite and of a sensible size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "quant/f16.h"
#include "quant/types.h"

namespace selm::test {

inline constexpr quant::Type kAllTypes[] = {
    quant::Type::f32,  quant::Type::f16,  quant::Type::bf16, quant::Type::q4_0,   quant::Type::q4_1,
    quant::Type::q5_0, quant::Type::q5_1, quant::Type::q8_0, quant::Type::q2_k,   quant::Type::q3_k,
    quant::Type::q4_k, quant::Type::q5_k, quant::Type::q6_k, quant::Type::iq4_nl, quant::Type::iq4_xs};

// Byte offsets of the half-precision scales in a block; 0xff: none.
struct ScaleOffsets {
  uint8_t first, second;
};
inline ScaleOffsets scale_offsets(quant::Type type) {
  switch (type) {
    case quant::Type::q4_1:
    case quant::Type::q5_1:
    case quant::Type::q4_k:
    case quant::Type::q5_k:
      return {0, 2};
    case quant::Type::q2_k:
      return {80, 82};
    case quant::Type::q3_k:
      return {108, 0xff};
    case quant::Type::q6_k:
      return {208, 0xff};
    default:
      return {0, 0xff};
  }
}

inline void put_u16(std::byte* p, uint16_t x) {
  p[0] = static_cast<std::byte>(x & 0xffu);
  p[1] = static_cast<std::byte>(x >> 8);
}

// n elements in blocks; `source` gives the randomness. Scales are in +-[0.5, 1.5) / 64.
inline std::vector<std::byte> random_row(quant::Type type, size_t n, std::mt19937& source) {
  std::uniform_real_distribution<float> size(0.5f, 1.5f);
  std::normal_distribution<float> normal;
  std::vector<std::byte> row(quant::row_bytes(type, n));
  const quant::TypeInfo& info = quant::info(type);
  if (info.block_size == 1) {
    for (size_t i = 0; i < n; ++i) {
      const float x = normal(source);
      std::byte* p = row.data() + i * info.block_bytes;
      if (type == quant::Type::f32) std::memcpy(p, &x, sizeof x);
      if (type == quant::Type::f16) put_u16(p, quant::f32_to_f16(x));
      if (type == quant::Type::bf16) put_u16(p, static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16));
    }
    return row;
  }
  for (std::byte& b : row) b = static_cast<std::byte>(source() & 0xffu);
  const ScaleOffsets at = scale_offsets(type);
  for (size_t b = 0; b < row.size(); b += info.block_bytes) {
    for (const uint8_t offset : {at.first, at.second}) {
      if (offset == 0xff) continue;
      const float scale = size(source) / 64 * (source() & 1u ? 1.0f : -1.0f);
      put_u16(row.data() + b + offset, quant::f32_to_f16(scale));
    }
  }
  return row;
}

}  // namespace selm::test
