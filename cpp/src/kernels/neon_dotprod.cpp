// The table for processors with sdot (ARMv8.2 and later): 16 products into 4 sums at once.
#include "kernels/neon_matmul.h"

#if defined(__aarch64__)

namespace selm::kernels {
namespace neon {
namespace {

struct Dot : ColumnTiles {
  template <bool>
  static int32x4_t dot32(Codes w, Codes a) {
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.low, a.low), w.high, a.high);
  }

  struct Scales {
    int32x4_t s[4];
  };
  static Scales scales(int16x8_t low, int16x8_t high) {
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
             vmovl_high_s16(high)}};
  }
  template <int g>
  static int32x4_t scaled16(int32x4_t sum, const Scales& scales, int8x16_t w, int8x16_t a) {
    return vmlaq_laneq_s32(sum, vdotq_s32(vdupq_n_s32(0), w, a), scales.s[g / 4], g % 4);
  }
  template <int g, bool kWide>
  static int32x4_t scaled32(int32x4_t sum, const Scales& scales, Codes w, Codes a) {
    return vmlaq_laneq_s32(sum, dot32<kWide>(w, a), scales.s[g / 4], g % 4);
  }

  // Vector k: elements 4k .. 4k + 4 of each row, for a product with those of one column.
  static void store_codes(int8_t* to, const int8x16_t* w) {
    const int32x4_t r0 = vreinterpretq_s32_s8(w[0]), r1 = vreinterpretq_s32_s8(w[1]);
    const int32x4_t r2 = vreinterpretq_s32_s8(w[2]), r3 = vreinterpretq_s32_s8(w[3]);
    const int32x4_t a = vzip1q_s32(r0, r2), b = vzip1q_s32(r1, r3);
    const int32x4_t c = vzip2q_s32(r0, r2), d = vzip2q_s32(r1, r3);
    vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(to + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
    vst1q_s8(to + 32, vreinterpretq_s8_s32(vzip1q_s32(c, d)));
    vst1q_s8(to + 48, vreinterpretq_s8_s32(vzip2q_s32(c, d)));
  }
  template <bool>
  static void dot16(int32x4_t* dot, const int8_t* codes, const int8x16_t* a) {
    const int8x16_t w0 = vld1q_s8(codes), w1 = vld1q_s8(codes + 16);
    const int8x16_t w2 = vld1q_s8(codes + 32), w3 = vld1q_s8(codes + 48);
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) dot[c] = vdotq_laneq_s32(dot[c], w0, a[c], 0);
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) dot[c] = vdotq_laneq_s32(dot[c], w1, a[c], 1);
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) dot[c] = vdotq_laneq_s32(dot[c], w2, a[c], 2);
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) dot[c] = vdotq_laneq_s32(dot[c], w3, a[c], 3);
  }
};

void matmul(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
            size_t n_cols, float* out, size_t ldo) {
  if (empty_product(n_rows, n, n_cols, out, ldo)) return;
  const Matmul run = n_cols < kManyColumns ? product<Few<Dot>>(type) : product<Many<Dot>>(type);
  if (run != nullptr) run(weights, n_rows, n, acts, n_cols, out, ldo);
}

constexpr Table kTable = {
    Isa::dotprod, "dotprod", quantize_row, matmul,     quant::dequantize_row, rms_norm, add, silu_mul, rope,
    to_f16,       from_f16,  attend,       accumulate, exponentials,
};

}  // namespace
}  // namespace neon

const Table* dotprod_table() { return &neon::kTable; }

}  // namespace selm::kernels

#endif
