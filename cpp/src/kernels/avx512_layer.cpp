// What a layer does beside products, AVX-512. Every order of sums is fixed by the sizes alone.
#include "kernels/avx512.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

// e^x within 2 units in the last place, to 0 below -103.97 and to infinity above 88.72; NaN stays.
// x = k ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes' expf (S. Moshier).
inline __m512 exp16(__m512 x) {
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

inline __m512d low_doubles(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
inline __m512d high_doubles(__m512 x) { return _mm512_cvtps_pd(high_half(x)); }

// Cached elements as floats.
inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const uint16_t* p) { return _mm512_cvtph_ps(load32(p)); }
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const uint16_t* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

// Lane i: sum_lanes of x[i], to the bit.
inline __m128 sum_lanes_4(const __m512* x) {
  __m128 y[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_add_ps(low_half(x[i]), high_half(x[i]));
    y[i] = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  }
  const __m128 a = _mm_add_ps(_mm_unpacklo_ps(y[0], y[1]), _mm_unpackhi_ps(y[0], y[1]));
  const __m128 b = _mm_add_ps(_mm_unpacklo_ps(y[2], y[3]), _mm_unpackhi_ps(y[2], y[3]));
  return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}

// scores[p] = scale * q.k_p. Lanes along the head, element d in lane d mod 16.
template <class Element>
void score(const float* q, const Element* k, size_t stride, size_t n_pos, size_t d_k, float scale,
           float* scores) {
  const size_t whole = d_k / 16 * 16;
  const __mmask16 mask = first_lanes(d_k - whole);
  size_t p = 0;
  for (; p + 4 <= n_pos; p += 4) {
    const Element* key = k + p * stride;
    __m512 acc[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (size_t d = 0; d < whole; d += 16) {
      const __m512 x = _mm512_loadu_ps(q + d);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) acc[i] = _mm512_fmadd_ps(x, load(key + i * stride + d), acc[i]);
    }
    if (mask != 0) {
      const __m512 x = _mm512_maskz_loadu_ps(mask, q + whole);
      for (size_t i = 0; i < 4; ++i)
        acc[i] = _mm512_fmadd_ps(x, load(key + i * stride + whole, mask), acc[i]);
    }
    _mm_storeu_ps(scores + p, _mm_mul_ps(sum_lanes_4(acc), _mm_set1_ps(scale)));
  }
  for (; p < n_pos; ++p) {
    const Element* key = k + p * stride;
    __m512 acc = _mm512_setzero_ps();
    for (size_t d = 0; d < whole; d += 16) acc = _mm512_fmadd_ps(_mm512_loadu_ps(q + d), load(key + d), acc);
    if (mask != 0) {
      acc = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q + whole), load(key + whole, mask), acc);
    }
    scores[p] = sum_lanes(acc) * scale;
  }
}

// scores become e^(score - largest); their sum comes back.
float softmax_terms(float* scores, size_t n_pos) {
  __m512 largest = _mm512_set1_ps(-__builtin_inff());
  for (size_t p = 0; p < n_pos; p += 16) {
    const __mmask16 mask = first_lanes(n_pos - p);
    largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, scores + p));
  }
  const __m512 max = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 total = _mm512_setzero_ps();
  for (size_t p = 0; p < n_pos; p += 16) {
    const __mmask16 mask = first_lanes(n_pos - p);
    const __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + p), max));
    _mm512_mask_storeu_ps(scores + p, mask, e);
    total = _mm512_mask_add_ps(total, mask, total, e);
  }
  return sum_lanes(total);
}

// out[0 .. 16 * kVectors) = sum_p scores[p] * v_p, positions in order, even and odd ones apart.
template <int kVectors, class Element>
void weigh(const float* scores, const Element* v, size_t stride, size_t n_pos, __mmask16 mask, float total,
           float* out) {
  __m512 even[kVectors], odd[kVectors];
  for (int i = 0; i < kVectors; ++i) even[i] = odd[i] = _mm512_setzero_ps();
  size_t p = 0;
  for (; p + 2 <= n_pos; p += 2) {
    const __m512 x = _mm512_set1_ps(scores[p]), y = _mm512_set1_ps(scores[p + 1]);
    const Element* value = v + p * stride;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      even[i] = _mm512_fmadd_ps(x, kVectors > 1 ? load(value + 16 * i) : load(value, mask), even[i]);
      odd[i] = _mm512_fmadd_ps(y, kVectors > 1 ? load(value + stride + 16 * i) : load(value + stride, mask),
                               odd[i]);
    }
  }
  if (p < n_pos) {
    const __m512 x = _mm512_set1_ps(scores[p]);
    const Element* value = v + p * stride;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      even[i] = _mm512_fmadd_ps(x, kVectors > 1 ? load(value + 16 * i) : load(value, mask), even[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    const __m512 y = _mm512_div_ps(_mm512_add_ps(even[i], odd[i]), _mm512_set1_ps(total));
    _mm512_mask_storeu_ps(out + 16 * i, kVectors > 1 ? static_cast<__mmask16>(0xffff) : mask, y);
  }
}

template <class Element>
void attend(const float* q, const Element* k, const Element* v, size_t stride, size_t n_pos, size_t d_k,
            size_t d_v, float scale, float* scores, float* out) {
  score(q, k, stride, n_pos, d_k, scale, scores);
  const float total = n_pos == 0 ? 1.0f : softmax_terms(scores, n_pos);
  size_t d = 0;
  for (; d + 64 <= d_v; d += 64) weigh<4>(scores, v + d, stride, n_pos, 0xffff, total, out + d);
  for (; d < d_v; d += 16) weigh<1>(scores, v + d, stride, n_pos, first_lanes(d_v - d), total, out + d);
}

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
    _mm512_mask_storeu_ps(out + i, mask, load(x + i, mask));
  }
}

void attend_f16(const float* q, const uint16_t* k, const uint16_t* v, size_t stride, size_t n_pos, size_t d_k,
                size_t d_v, float scale, float* scores, float* out) {
  attend(q, k, v, stride, n_pos, d_k, d_v, scale, scores, out);
}
void attend_f32(const float* q, const float* k, const float* v, size_t stride, size_t n_pos, size_t d_k,
                size_t d_v, float scale, float* scores, float* out) {
  attend(q, k, v, stride, n_pos, d_k, d_v, scale, scores, out);
}

}  // namespace selm::kernels::avx512

#endif
