// The truth for products of many columns: quantised weights as int8 with one scale for 256 elements,
// activations as u8_256. Every table that has a matmul_u8 gives these bits.
//
// A weight is step * code - low, step and low those of its group. With amax the largest magnitude that the
// groups' scales allow, the new code is (step * code - low) * 127 / amax, rounded. Tables multiply in 16
// bits: step and low in units of 2^-5 of a new code, the code brought to the upper bits of 15.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/layout.h"
#include "quant/unpack.h"

namespace selm::kernels {
namespace {

using quant::Type;

// Codes of a type: unsigned of `bits` with `zero` standing for 0; those of 8 bits are signed.
struct CodeShape {
  int bits, zero;
};
CodeShape code_shape(Type type) {
  switch (type) {
    case Type::q2_k:
      return {2, 0};
    case Type::q3_k:
      return {3, 4};
    case Type::q4_0:
      return {4, 8};
    case Type::q4_1:
    case Type::q4_k:
      return {4, 0};
    case Type::q5_0:
      return {5, 16};
    case Type::q5_1:
    case Type::q5_k:
      return {5, 0};
    case Type::q6_k:
      return {6, 32};
    default:
      return {8, 0};
  }
}

// Up to 256 elements of a row, as they come from the file; absent ones are zeros.
struct Block {
  float step[16], low[16];  // per 16 elements
  int code[256];
};

void load_block(Type type, const std::byte* p, size_t count, Block& b) {
  const int zero = code_shape(type).zero;
  std::memset(&b, 0, sizeof b);
  if (quant::info(type).block_size == 32) {
    for (size_t i = 0; i < count / 32; ++i) {
      quant::Block32 w;
      quant::unpack32(type)(p + i * quant::info(type).block_bytes, w);
      for (size_t k = 0; k < 32; ++k) b.code[32 * i + k] = w.q[k] + zero;
      b.step[2 * i] = b.step[2 * i + 1] = w.d;
      b.low[2 * i] = b.low[2 * i + 1] = zero != 0 ? w.d * static_cast<float>(zero) : -w.m;
    }
    return;
  }
  quant::Block256 w;
  quant::unpack256(type)(p, w);
  for (size_t k = 0; k < 256; ++k) b.code[k] = w.q[k] + zero;
  for (size_t g = 0; g < 16; ++g) {
    b.step[g] = w.d * static_cast<float>(w.scale[g]);
    b.low[g] =
        zero != 0 ? w.d * static_cast<float>(w.scale[g] * zero) : w.dmin * static_cast<float>(w.min[g]);
  }
}

int to_units(float x) { return static_cast<int>(std::nearbyint(x)); }

// The new codes; returns their scale.
float requantize(Type type, const Block& b, int8_t* out) {
  const int bits = code_shape(type).bits;
  const auto largest = static_cast<float>(bits == 8 ? 128 : (1 << bits) - 1);
  float amax = 0;
  bool finite = true;
  for (size_t g = 0; g < 16; ++g) {
    const float top = std::fma(b.step[g], largest, -b.low[g]);
    finite = finite && std::isfinite(top) && std::isfinite(b.low[g]);
    amax = std::max({amax, std::fabs(top), std::fabs(b.low[g])});
  }
  if (!finite || amax < kTinyBlock) {
    std::memset(out, 0, 256);
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float inverse = 127.0f / amax;
  const auto unit = static_cast<float>(bits == 8 ? 1 << 13 : 1 << (6 + bits));
  for (size_t k = 0; k < 256; ++k) {
    const size_t g = k / 16;
    const int step = to_units(b.step[g] * inverse * unit);
    // Half a unit for the bits that are cut off, half a code to round to nearest.
    const int low = to_units(std::fma(b.low[g] * inverse, 32.0f, -16.5f));
    const int code = bits == 8 ? b.code[k] * 256 : b.code[k] << (15 - bits);
    out[k] = static_cast<int8_t>(std::clamp((((code * step) >> 16) - low) >> 5, -128, 127));
  }
  return amax / 127.0f;
}

}  // namespace

void scalar_matmul_u8(Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                      size_t n_cols, float* out, size_t ldo) {
  const size_t row_bytes = quant::row_bytes(type, n), act_bytes = act_u8_bytes(n);
  for (size_t i = 0; i < n_rows * n_cols; ++i) out[i / n_rows * ldo + i % n_rows] = 0.0f;
  for (size_t r = 0; r < n_rows; ++r) {
    for (size_t k0 = 0; k0 < n; k0 += 256) {
      const size_t count = std::min<size_t>(n - k0, 256);
      Block block;
      int8_t w[256];
      load_block(type, weights + r * row_bytes + quant::row_bytes(type, k0), count, block);
      const float scale = requantize(type, block, w);
      for (size_t c = 0; c < n_cols; ++c) {
        const std::byte* act = acts + c * act_bytes;
        const auto* q = reinterpret_cast<const uint8_t*>(act) + k0;
        int32_t sum = 0;
        for (size_t k = 0; k < count; ++k) sum += w[k] * (q[k] - 128);
        float act_scale;
        std::memcpy(&act_scale, act + act_u8_scale_offset(n) + k0 / 256 * sizeof(float), sizeof act_scale);
        float* place = out + c * ldo + r;
        *place = std::fma(static_cast<float>(sum), scale * act_scale, *place);
      }
    }
  }
}

}  // namespace selm::kernels
