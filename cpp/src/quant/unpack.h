// One block of each quantised type as plain integers and its scales: what dequantisation and the
// scalar kernels share. Layouts: ggml/src/ggml-common.h; values: the `gguf` package's quants.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/types.h"

namespace selm::quant {

// 32 elements: w[i] = d * q[i] + m (m is zero but for Q4_1 and Q5_1).
struct Block32 {
  float d, m;
  int8_t q[32];
};

// 256 elements in 16 groups of 16: w[i] = (d * scale[i / 16]) * q[i] - dmin * min[i / 16]
// (dmin is zero for types without minima).
struct Block256 {
  float d, dmin;
  int8_t scale[16];
  uint8_t min[16];
  int8_t q[256];
};

using Unpack32 = void (*)(const std::byte* source, Block32& block);
using Unpack256 = void (*)(const std::byte* source, Block256& block);

// nullptr for a type with other blocks.
Unpack32 unpack32(Type type);
Unpack256 unpack256(Type type);

// IQ4_NL and IQ4_XS: what the 16 codes stand for.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace selm::quant
