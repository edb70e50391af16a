// What a layer does beside products, AVX-512. Every order of sums is fixed by the sizes alone.
#include "kernels/avx512.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

inline __m512d low_doubles(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline __m512d high_doubles(__m512 x) { return _mm512_cvtps_pd(high_half(x)); }

}  // namespace

void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps) {
  __m512d a = _mm512_setzero_pd(), b = _mm512_setzero_pd();
  for (size_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
    const __m512d low = low_doubles(v), high = high_doubles(v);
    a = _mm512_fmadd_pd(low, low, a);
    b = _mm512_fmadd_pd(high, high, b);
  }
  const double mean = _mm512_reduce_add_pd(_mm512_add_pd(a, b)) / static_cast<double>(n);
  const __m128d root = _mm_sqrt_pd(_mm_set1_pd(mean + static_cast<double>(eps)));
  const __m512 scale = _mm512_set1_ps(static_cast<float>(1.0 / _mm_cvtsd_f64(root)));
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_lanes(n - i);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), scale);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, weight + i)));
  }
}

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_lanes(n - i);
    const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i));
    _mm512_mask_storeu_ps(x + i, mask, sum);
  }
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_lanes(n - i);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

void rope(float* head, const float* cos_sin, size_t n_rot, bool neox) {
  if (!neox) {
    for (size_t i = 0; i < n_rot; i += 16) {  // x: a b a b ..., turn: cos sin cos sin ...
      const __mmask16 mask = first_lanes(n_rot - i);
      const __m512 x = _mm512_maskz_loadu_ps(mask, head + i), turn = _mm512_maskz_loadu_ps(mask, cos_sin + i);
      const __m512 crossed = _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), _mm512_movehdup_ps(turn));
      _mm512_mask_storeu_ps(head + i, mask, _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(turn), crossed));
    }
    return;
  }
  const size_t half = n_rot / 2;
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
  for (size_t i = 0; i < half; i += 16) {
    const size_t left = half - i;
    const __mmask16 mask = first_lanes(left);
    const __m512 t0 = _mm512_maskz_loadu_ps(first_lanes(2 * left), cos_sin + 2 * i);
    const __m512 t1 = left > 8 ? _mm512_maskz_loadu_ps(first_lanes(2 * left - 16), cos_sin + 2 * i + 16)
                               : _mm512_setzero_ps();
    const __m512 cos = _mm512_permutex2var_ps(t0, evens, t1), sin = _mm512_permutex2var_ps(t0, odds, t1);
    const __m512 a = _mm512_maskz_loadu_ps(mask, head + i), b = _mm512_maskz_loadu_ps(mask, head + half + i);
    _mm512_mask_storeu_ps(head + i, mask, _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)));
    _mm512_mask_storeu_ps(head + half + i, mask, _mm512_fmadd_ps(a, sin, _mm512_mul_ps(b, cos)));
  }
}

void to_f16(const float* x, uint16_t* out, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_lanes(n - i);
    const __m256i h = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(mask, x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(out + i, mask, h);
  }
}

void from_f16(const uint16_t* x, float* out, size_t n) {
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first_lanes(n - i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, x + i)));
  }
}

}  // namespace selm::kernels::avx512

#endif
