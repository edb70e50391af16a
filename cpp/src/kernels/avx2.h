// What the AVX2 files share. Helpers are in an anonymous namespace (see layout.h); the functions of
// the table have names of their own and live in the file named beside them.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/layout.h"

namespace selm::kernels::avx2 {

// As in avx512.h.
inline constexpr size_t kPiece = 1024;
inline constexpr size_t kManyColumns = 6;

using Matmul = void (*)(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                        size_t n_cols, float* out, size_t ldo);
Matmul matmul_32(quant::Type type);     // avx2_q32.cpp
Matmul matmul_256(quant::Type type);    // avx2_k.cpp
Matmul matmul_float(quant::Type type);  // avx2_float.cpp

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out);  // avx2_act.cpp

// avx2_layer.cpp
void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps);
void add(float* x, const float* y, size_t n);
void silu_mul(const float* gate, const float* up, float* out, size_t n);
void rope(float* head, const float* cos_sin, size_t n_rot, bool neox);
void to_f16(const float* x, uint16_t* out, size_t n);
void from_f16(const uint16_t* x, float* out, size_t n);

// avx2_attend.cpp
void attend(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
            size_t n_queries, float* scratch, float* partials);
void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width);
void exponentials(float* x, size_t n, float shift);

namespace {

[[maybe_unused]] inline __m128i load16(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
[[maybe_unused]] inline __m256i load32(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[maybe_unused]] inline __m256i load32_aligned(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
[[maybe_unused]] inline void store32_aligned(void* p, __m256i x) {
  _mm256_store_si256(static_cast<__m256i*>(p), x);
}
// Asks for the bytes that lie kAhead beyond p: rows follow each other in memory, and the processor's
// own prefetching starts anew at every page. No fault where nothing is mapped.
constexpr size_t kAhead = 4096;
template <size_t kSize>
[[maybe_unused]] inline void prefetch(const std::byte* p) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kSize; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead + i, _MM_HINT_T0);
}
[[maybe_unused]] inline int32_t load_i32(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
[[maybe_unused]] inline uint32_t load_u32(const void* p) {
  uint32_t x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
[[maybe_unused]] inline uint16_t load_u16(const void* p) {
  uint16_t x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// All bits set in the first n of 8 lanes (all of them from 8 on).
[[maybe_unused]] inline __m256i first_lanes(size_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < 8 ? n : 8)), lane);
}

// Up to 4 halves, `stride` bytes apart, as floats; zeros past `count`.
[[maybe_unused]] inline __m128 load_halves(const std::byte* p, size_t stride, size_t count) {
  uint64_t halves = 0;
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    if (i < count) halves |= static_cast<uint64_t>(load_u16(p + i * stride)) << (16 * i);
  }
  return _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<long long>(halves)));
}

[[maybe_unused]] inline float sum_lanes(__m128 x) {
  const __m128 c = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
// The one order in which 8 lanes become one number: l + (l + 4), then 2, 1 apart.
[[maybe_unused]] inline float sum_lanes(__m256 x) {
  return sum_lanes(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
// The same order where lane l of every number is in x[l].
[[maybe_unused]] inline __m256 sum_lanes(__m256* x, size_t lanes) {
  for (size_t half = lanes / 2; half > 0; half /= 2) {
    for (size_t l = 0; l < half; ++l) x[l] = _mm256_add_ps(x[l], x[l + half]);
  }
  return x[0];
}

// 2^k for -126 <= k <= 127.
[[maybe_unused]] inline __m256 power_of_two(__m256i k) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

// As exp16 of avx512.h; 2^k in two factors, as k may lie beyond a float's exponents.
[[maybe_unused]] inline __m256 exp8(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(100.0f), _mm256_max_ps(_mm256_set1_ps(-110.0f), x));
  const __m256 k = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(k, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_add_ps(_mm256_fmadd_ps(y, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i whole = _mm256_cvtps_epi32(k), half = _mm256_srai_epi32(whole, 1);
  return _mm256_mul_ps(_mm256_mul_ps(y, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

// Row r of 8 dwords becomes column r.
[[maybe_unused]] inline void transpose8(__m256i* r) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Pairs of products of signed bytes, exact: |w| <= 128 and |a| <= 127 give at most 32512.
[[maybe_unused]] inline __m256i pairs_signed(__m256i w, __m256i a) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}

// A strip's results for one column: stored, or added where earlier pieces left theirs.
[[maybe_unused]] inline void put_sums(float* place, size_t rows, __m256 sum, bool first) {
  const __m256i mask = first_lanes(rows);
  if (!first) sum = _mm256_add_ps(_mm256_maskload_ps(place, mask), sum);
  _mm256_maskstore_ps(place, mask, sum);
}

}  // namespace
}  // namespace selm::kernels::avx2

#endif
