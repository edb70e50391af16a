// Products of F32, F16 and BF16 weights, AVX2: 8 lanes along the row, element k in lane k mod 8, one
// fused multiply-add each, then the lanes are summed.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m256 load(const std::byte* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static __m256 load(const std::byte* p) { return _mm256_cvtph_ps(load16(p)); }
};
struct Bf16 {
  static constexpr size_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
};

// The last `count` < 8 elements of a row; never reads past them.
template <class T>
inline __m256 load_rest(const std::byte* p, size_t count) {
  std::byte copy[8 * T::kBytes] = {};
  __builtin_memcpy(copy, p, count * T::kBytes);
  return T::load(copy);
}

template <class T, size_t kRows, size_t kCols>
inline void tile(const std::byte* weights, size_t row_bytes, size_t n, const std::byte* acts,
                 size_t act_bytes, float* out, size_t ldo) {
  __m256 acc[kRows][kCols];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) acc[r][c] = _mm256_setzero_ps();
  }
  for (size_t k = 0; k < n; k += 8) {
    __m256 a[kCols];
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) {
      a[c] = _mm256_load_ps(reinterpret_cast<const float*>(acts + c * act_bytes) + k);  // zero-padded
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) {
      const std::byte* p = weights + r * row_bytes + k * T::kBytes;
      const __m256 w = n - k >= 8 ? T::load(p) : load_rest<T>(p, n - k);
#pragma GCC unroll 4
      for (size_t c = 0; c < kCols; ++c) acc[r][c] = _mm256_fmadd_ps(w, a[c], acc[r][c]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t c = 0; c < kCols; ++c) out[c * ldo + r] = sum_lanes(acc[r][c]);
  }
}

template <class T, size_t kRows>
inline void rows_times_columns(const std::byte* weights, size_t n, const std::byte* acts, size_t n_cols,
                               float* out, size_t ldo) {
  const size_t row_bytes = n * T::kBytes, act_bytes = round_up(n * sizeof(float), 64);
  size_t c = 0;
  for (; c + 2 <= n_cols; c += 2) {
    tile<T, kRows, 2>(weights, row_bytes, n, acts + c * act_bytes, act_bytes, out + c * ldo, ldo);
  }
  if (c < n_cols) {
    tile<T, kRows, 1>(weights, row_bytes, n, acts + c * act_bytes, act_bytes, out + c * ldo, ldo);
  }
}

template <class T>
void matmul(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
            float* out, size_t ldo) {
  const size_t row_bytes = n * T::kBytes;
  size_t r = 0;
  for (; r + 4 <= n_rows; r += 4) {
    rows_times_columns<T, 4>(weights + r * row_bytes, n, acts, n_cols, out + r, ldo);
  }
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

}  // namespace selm::kernels::avx2

#endif
