// The table for processors with smmla: 2 rows times 2 columns, 8 elements deep, at once. It needs at
// least two columns to win anything, so few of them go to the sdot table.
#include "kernels/neon_matmul.h"

#if defined(__aarch64__)

namespace selm::kernels {
namespace neon {
namespace {

// A vector of a tile is 2 rows x 2 columns: {r0c0, r0c1, r1c0, r1c1}. Vector i of a tile: columns
// i / 2 * 2 and the next, rows i % 2 * 2 and the next.
struct Square {
  static constexpr size_t kRowVectors = 2;

  static void arrange(float32x4_t& x, float32x4_t& y) {
    const float32x4_t low = vzip1q_f32(x, y);
    y = vzip2q_f32(x, y);
    x = low;
  }
  static void arrange(int32x4_t& x, int32x4_t& y) {
    const int32x4_t low = vzip1q_s32(x, y);
    y = vzip2q_s32(x, y);
    x = low;
  }
  static void collect(float32x4_t& x, float32x4_t& y) {
    const float32x4_t first = vuzp1q_f32(x, y);
    y = vuzp2q_f32(x, y);
    x = first;
  }
  static void spread(int32x4_t x, int32x4_t* to) {
    to[0] = vzip1q_s32(x, x);
    to[1] = vzip2q_s32(x, x);
  }
  static void spread(float32x4_t x, float32x4_t* to) {
    to[0] = vzip1q_f32(x, x);
    to[1] = vzip2q_f32(x, x);
  }
  static void columns(float x, float y, float32x4_t* to) {
    const float32x2_t both = vset_lane_f32(y, vdup_n_f32(x), 1);
    to[0] = to[1] = vcombine_f32(both, both);
  }

  // Elements 0-7, then 8-15, of two rows or two columns side by side.
  struct Sides {
    int8x16_t low, high;
  };
  static Sides side_by_side(int8x16_t x, int8x16_t y) {
    const int64x2_t a = vreinterpretq_s64_s8(x), b = vreinterpretq_s64_s8(y);
    return {vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))};
  }
  static void store_codes(int8_t* to, const int8x16_t* w) {
    const Sides first = side_by_side(w[0], w[1]), second = side_by_side(w[2], w[3]);
    vst1q_s8(to, first.low);
    vst1q_s8(to + 16, first.high);
    vst1q_s8(to + 32, second.low);
    vst1q_s8(to + 48, second.high);
  }
  static void load_acts(const int8_t* const* q, size_t at, int8x16_t* a) {
#pragma GCC unroll 2
    for (size_t c = 0; c < kTileColumns; c += 2) {
      const Sides sides = side_by_side(vld1q_s8(q[c] + at), vld1q_s8(q[c + 1] + at));
      a[c] = sides.low;
      a[c + 1] = sides.high;
    }
  }
  template <bool>
  static void dot16(int32x4_t* dot, const int8_t* codes, const int8x16_t* a) {
    const int8x16_t w0 = vld1q_s8(codes), w1 = vld1q_s8(codes + 16);
    const int8x16_t w2 = vld1q_s8(codes + 32), w3 = vld1q_s8(codes + 48);
#pragma GCC unroll 2
    for (size_t c = 0; c < kTileColumns; c += 2) {
      dot[c] = vmmlaq_s32(dot[c], w0, a[c]);
      dot[c + 1] = vmmlaq_s32(dot[c + 1], w2, a[c]);
    }
#pragma GCC unroll 2
    for (size_t c = 0; c < kTileColumns; c += 2) {
      dot[c] = vmmlaq_s32(dot[c], w1, a[c + 1]);
      dot[c + 1] = vmmlaq_s32(dot[c + 1], w3, a[c + 1]);
    }
  }
};

void matmul(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
            size_t n_cols, float* out, size_t ldo) {
  if (n_cols < kManyColumns) {
    dotprod_table()->matmul(type, weights, n_rows, n, acts, n_cols, out, ldo);
  } else if (!empty_product(n_rows, n, n_cols, out, ldo)) {
    const Matmul run = product<Many<Square>>(type);
    if (run != nullptr) run(weights, n_rows, n, acts, n_cols, out, ldo);
  }
}

constexpr Table kTable = {
    Isa::i8mm, "i8mm",   quantize_row, matmul,     quant::dequantize_row, rms_norm, add, silu_mul, rope,
    to_f16,    from_f16, attend,       accumulate, exponentials,
};

}  // namespace
}  // namespace neon

const Table* i8mm_table() { return &neon::kTable; }

}  // namespace selm::kernels

#endif
