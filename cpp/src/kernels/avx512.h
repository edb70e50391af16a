// What the AVX-512 files share. Helpers are in an anonymous namespace (see layout.h); the functions
// of the table have names of their own and live in the file named beside them.
#pragma once

#if defined(__x86_64__)

// GCC 12 takes its own intrinsics' undefined pass-through operands for mistakes of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "kernels/layout.h"

namespace selm::kernels::avx512 {

// Elements whose products are summed before the sum is added to the output: long rows are worked
// through in such pieces, so the unpacked weights of a strip of rows stay near, and fit on a small
// thread's stack (60 KB in all; twice the piece is 2 % faster).
inline constexpr size_t kPiece = 1024;
// From this many columns on, weights are unpacked for a strip of rows and used for all columns.
inline constexpr size_t kManyColumns = 5;

using Matmul = void (*)(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                        size_t n_cols, float* out, size_t ldo);
// nullptr for other types.
Matmul matmul_32(quant::Type type);     // avx512_q32.cpp
Matmul matmul_256(quant::Type type);    // avx512_k.cpp
Matmul matmul_float(quant::Type type);  // avx512_float.cpp

// Table::matmul_u8; avx512_u8.cpp
void matmul_u8(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
               size_t n_cols, float* out, size_t ldo);

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out);  // avx512_act.cpp

// avx512_layer.cpp
void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps);
void add(float* x, const float* y, size_t n);
void silu_mul(const float* gate, const float* up, float* out, size_t n);
void rope(float* head, const float* cos_sin, size_t n_rot, bool neox);
void to_f16(const float* x, uint16_t* out, size_t n);
void from_f16(const uint16_t* x, float* out, size_t n);

// avx512_attend.cpp
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
[[maybe_unused]] inline __m512i load64(const void* p) { return _mm512_loadu_si512(p); }
// Asks for the bytes that lie kAhead beyond p: rows follow each other in memory, and the processor's
// own prefetching starts anew at every page. No fault where nothing is mapped.
constexpr size_t kAhead = 4096;
template <size_t kSize, auto kHint = _MM_HINT_T0>
[[maybe_unused]] inline void prefetch(const std::byte* p, size_t ahead = kAhead) {
#pragma GCC unroll 16
  for (size_t i = 0; i < kSize; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p) + ahead + i, kHint);
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

// The first n of 16 lanes (all of them from 16 on).
[[maybe_unused]] inline __mmask16 first_lanes(size_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

[[maybe_unused]] inline __m256 low_half(__m512 x) { return _mm512_castps512_ps256(x); }
[[maybe_unused]] inline __m256 high_half(__m512 x) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
}

// The one order in which 16, 8 or 4 lanes become one number: l + (l + 8), then 4, 2, 1 apart.
[[maybe_unused]] inline float sum_lanes(__m128 x) {
  const __m128 c = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
[[maybe_unused]] inline float sum_lanes(__m256 x) {
  return sum_lanes(_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
[[maybe_unused]] inline float sum_lanes(__m512 x) {
  return sum_lanes(_mm256_add_ps(low_half(x), high_half(x)));
}

// The same order where lane l of 16 numbers is in x[l * stride].
[[maybe_unused]] inline __m512 sum_lanes(__m512* x, size_t lanes, size_t stride) {
  for (size_t half = lanes / 2; half > 0; half /= 2) {
    for (size_t l = 0; l < half; ++l) x[l * stride] = _mm512_add_ps(x[l * stride], x[(l + half) * stride]);
  }
  return x[0];
}

// A strip's results for one column: stored, or added where earlier pieces left theirs.
[[maybe_unused]] inline void put_sums(float* place, size_t rows, __m512 sum, bool first) {
  const __mmask16 mask = first_lanes(rows);
  if (!first) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), sum);
  _mm512_mask_storeu_ps(place, mask, sum);
}

// e^x within 2 units in the last place, to 0 below -103.97 and to infinity above 88.72; NaN stays.
// x = k ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf (S. Moshier).
[[maybe_unused]] inline __m512 exp16(__m512 x) {
  // The second operand is the outcome where one is NaN.
  x = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
  const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(k, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), r);
  return _mm512_scalef_ps(_mm512_add_ps(y, _mm512_set1_ps(1.0f)), k);
}

// Row r of 16 dwords becomes column r.
[[maybe_unused]] inline void transpose16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Magnitudes as integers: they order as the floats do, infinity and NaN above all.
[[maybe_unused]] inline __m512i magnitude_bits(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// 16 halves, the low (or high) parts of dwords, as floats.
[[maybe_unused]] inline __m512 low_halves(__m512i x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
[[maybe_unused]] inline __m512 high_halves(__m512i x) { return low_halves(_mm512_srli_epi32(x, 16)); }

}  // namespace
}  // namespace selm::kernels::avx512

#endif
