// Products of F32, F16 and BF16 weights, AVX-512: 16 lanes along the row, element k in lane k mod 16,
// one fused multiply-add each, then the lanes are summed. A tile of rows and columns shares loads,
// never lanes.
#include "kernels/avx512.h"
#include "kernels/avx512_float_types.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

// 16 elements (the first of them, by `mask`, in the last step of a row) into every accumulator.
template <class T, size_t kRows, size_t kCols, bool kWhole>
inline void step(const std::byte* weights, size_t row_bytes, size_t k, __mmask16 mask, const std::byte* acts,
                 size_t act_bytes, __m512 (&acc)[kRows][kCols]) {
  __m512 w[kRows];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
    const std::byte* p = weights + r * row_bytes + k * T::kBytes;
    w[r] = kWhole ? T::load(p) : T::load(p, mask);
  }
#pragma GCC unroll 4
  for (size_t c = 0; c < kCols; ++c) {
    const __m512 a = _mm512_load_ps(reinterpret_cast<const float*>(acts + c * act_bytes) + k);  // zero-padded
#pragma GCC unroll 4
    for (size_t r = 0; r < kRows; ++r) acc[r][c] = _mm512_fmadd_ps(w[r], a, acc[r][c]);
  }
}

template <class T, size_t kRows, size_t kCols>
inline void tile(const std::byte* weights, size_t row_bytes, size_t n, const std::byte* acts,
                 size_t act_bytes, float* out, size_t ldo) {
  __m512 acc[kRows][kCols];
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) acc[r][c] = _mm512_setzero_ps();
  }
  size_t k = 0;
  for (; k + 16 <= n; k += 16) step<T, kRows, kCols, true>(weights, row_bytes, k, 0, acts, act_bytes, acc);
  if (k < n) step<T, kRows, kCols, false>(weights, row_bytes, k, first_lanes(n - k), acts, act_bytes, acc);
#pragma GCC unroll 4
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kCols; ++c) out[c * ldo + r] = sum_lanes(acc[r][c]);
  }
}

template <class T, size_t kRows>
inline void rows_times_columns(const std::byte* weights, size_t n, const std::byte* acts, size_t n_cols,
                               float* out, size_t ldo) {
  const size_t row_bytes = n * T::kBytes, act_bytes = round_up(n * sizeof(float), 64);
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) {
    tile<T, kRows, 4>(weights, row_bytes, n, acts + c * act_bytes, act_bytes, out + c * ldo, ldo);
  }
  for (; c < n_cols; ++c) {
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

}  // namespace selm::kernels::avx512

#endif
