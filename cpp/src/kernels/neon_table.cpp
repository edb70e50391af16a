// The table for every aarch64 processor: bytes are multiplied into 16 bits, then widened.
#include "kernels/neon_matmul.h"

#if defined(__aarch64__)

namespace selm::kernels {
namespace neon {
namespace {

// Two products a lane.
inline int16x8_t products(int8x16_t w, int8x16_t a) {
  return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a);
}
inline int16x8_t products(int16x8_t sum, int8x16_t w, int8x16_t a) {
  return vmlal_high_s8(vmlal_s8(sum, vget_low_s8(w), vget_low_s8(a)), w, a);
}

struct Plain : ColumnTiles {
  template <bool kWide>
  static int32x4_t dot32(Codes w, Codes a) {
    const int16x8_t low = products(w.low, a.low);
    if constexpr (kWide) return vpadalq_s16(vpaddlq_s16(low), products(w.high, a.high));
    return vpaddlq_s16(products(low, w.high, a.high));
  }

  // 16-bit sums times 16-bit scales: no step to 32 bits of its own.
  struct Scales {
    int16x8_t s[2];
  };
  static Scales scales(int16x8_t low, int16x8_t high) { return {{low, high}}; }
  template <int g>
  static int32x4_t scaled(int32x4_t sum, const Scales& scales, int16x8_t x) {
    sum = vmlal_laneq_s16(sum, vget_low_s16(x), scales.s[g / 8], g % 8);
    return vmlal_high_laneq_s16(sum, x, scales.s[g / 8], g % 8);
  }
  template <int g>
  static int32x4_t scaled16(int32x4_t sum, const Scales& scales, int8x16_t w, int8x16_t a) {
    return scaled<g>(sum, scales, products(w, a));
  }
  template <int g, bool kWide>
  static int32x4_t scaled32(int32x4_t sum, const Scales& scales, Codes w, Codes a) {
    const int16x8_t low = products(w.low, a.low);
    if constexpr (kWide) return scaled<g>(scaled<g>(sum, scales, low), scales, products(w.high, a.high));
    return scaled<g>(sum, scales, products(low, w.high, a.high));
  }

  static void store_codes(int8_t* to, const int8x16_t* w) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) vst1q_s8(to + 16 * i, w[i]);
  }
  template <bool kWide>
  static void dot16(int32x4_t* dot, const int8_t* codes, const int8x16_t* a) {
    const int8x16_t w[4] = {vld1q_s8(codes), vld1q_s8(codes + 16), vld1q_s8(codes + 32),
                            vld1q_s8(codes + 48)};
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) {
      const int16x8_t x[4] = {products(w[0], a[c]), products(w[1], a[c]), products(w[2], a[c]),
                              products(w[3], a[c])};
      if constexpr (kWide) {
        const int32x4_t y[4] = {vpaddlq_s16(x[0]), vpaddlq_s16(x[1]), vpaddlq_s16(x[2]), vpaddlq_s16(x[3])};
        dot[c] = vaddq_s32(dot[c], sum_4(y));
      } else {  // 8 products of +-32 by +-127 are at most 32512
        dot[c] = vpadalq_s16(dot[c], vpaddq_s16(vpaddq_s16(x[0], x[1]), vpaddq_s16(x[2], x[3])));
      }
    }
  }
};

void matmul(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
            size_t n_cols, float* out, size_t ldo) {
  if (empty_product(n_rows, n, n_cols, out, ldo)) return;
  const Matmul run = n_cols < kManyColumns ? product<Few<Plain>>(type) : product<Many<Plain>>(type);
  if (run != nullptr) run(weights, n_rows, n, acts, n_cols, out, ldo);
}

// One row per token: the scalar code is fast enough, and exact.
constexpr Table kTable = {
    Isa::neon, "neon",   quantize_row, matmul,     quant::dequantize_row, rms_norm, add, silu_mul, rope,
    to_f16,    from_f16, attend,       accumulate, exponentials,
};

}  // namespace
}  // namespace neon

const Table* neon_table() { return &neon::kTable; }

}  // namespace selm::kernels

#endif
