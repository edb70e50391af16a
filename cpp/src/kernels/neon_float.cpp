// Products of F32, F16 and BF16 weights, NEON: 4 lanes along the row, element k in lane k mod 4, one
// fused multiply-add each, then the lanes are summed.
#include "kernels/neon.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

struct F32 {
  static constexpr size_t kBytes = 4;
  static float32x4_t load(const std::byte* p) { return vreinterpretq_f32_u8(load16(p)); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static float32x4_t load(const std::byte* p) { return load_4_halves(p); }
};
struct Bf16 {
  static constexpr size_t kBytes = 2;
  static float32x4_t load(const std::byte* p) {
    const uint8x8_t x = vld1_u8(reinterpret_cast<const uint8_t*>(p));
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(x), 16));
  }
};

// The last `count` < 4 elements of a row; never reads past them.
template <class T>
inline float32x4_t load_rest(const std::byte* p, size_t count) {
  std::byte copy[4 * T::kBytes] = {};
  __builtin_memcpy(copy, p, count * T::kBytes);
  return T::load(copy);
}

// Elements k .. k + 4 of a row, or what is left of them.
template <class T, size_t kRows, size_t kCols, bool kWhole>
inline void add_step(const std::byte* weights, size_t row_bytes, size_t n, const std::byte* acts,
                     size_t act_bytes, size_t k, float32x4_t (*acc)[kCols]) {
  float32x4_t a[kCols];
#pragma GCC unroll 4
  for (size_t c = 0; c < kCols; ++c)
    a[c] = vld1q_f32(reinterpret_cast<const float*>(acts + c * act_bytes) + k);  // zero-padded
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
    const std::byte* p = weights + r * row_bytes + k * T::kBytes;
    const float32x4_t w = kWhole ? T::load(p) : load_rest<T>(p, n - k);
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) acc[r][c] = vfmaq_f32(acc[r][c], w, a[c]);
  }
}

template <class T, size_t kRows, size_t kCols>
inline void tile(const std::byte* weights, size_t row_bytes, size_t n, const std::byte* acts,
                 size_t act_bytes, float* out, size_t ldo) {
  float32x4_t acc[kRows][kCols];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) acc[r][c] = vdupq_n_f32(0.0f);
  }
  size_t k = 0;
  for (; k + 4 <= n; k += 4) add_step<T, kRows, kCols, true>(weights, row_bytes, n, acts, act_bytes, k, acc);
  if (k < n) add_step<T, kRows, kCols, false>(weights, row_bytes, n, acts, act_bytes, k, acc);
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) out[c * ldo + r] = sum_lanes(acc[r][c]);
  }
}

// 16 sums in registers for whole tiles, as many chains as there are rows for single columns.
template <class T, size_t kRows>
inline void rows_times_columns(const std::byte* weights, size_t n, const std::byte* acts, size_t n_cols,
                               float* out, size_t ldo) {
  constexpr size_t kTileRows = kRows < 4 ? kRows : 4;
  const size_t row_bytes = n * T::kBytes, act_bytes = round_up(n * sizeof(float), 64);
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) {
    for (size_t r = 0; r < kRows; r += kTileRows) {
      tile<T, kTileRows, 4>(weights + r * row_bytes, row_bytes, n, acts + c * act_bytes, act_bytes,
                            out + c * ldo + r, ldo);
    }
  }
  for (; c < n_cols; ++c)
    tile<T, kRows, 1>(weights, row_bytes, n, acts + c * act_bytes, act_bytes, out + c * ldo, ldo);
}

template <class T>
void matmul(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
            float* out, size_t ldo) {
  const size_t row_bytes = n * T::kBytes;
  size_t r = 0;
  for (; r + 8 <= n_rows; r += 8)
    rows_times_columns<T, 8>(weights + r * row_bytes, n, acts, n_cols, out + r, ldo);
  for (; r < n_rows; ++r) rows_times_columns<T, 1>(weights + r * row_bytes, n, acts, n_cols, out + r, ldo);
}

}  // namespace

Matmul matmul_float(quant::Type type) {
  switch (type) {
    case quant::Type::f32:
      return matmul<F32>;
    case quant::Type::f16:
      return matmul<F16>;
    case quant::Type::bf16:
      return matmul<Bf16>;
    default:
      return nullptr;
  }
}

}  // namespace selm::kernels::neon

#endif
