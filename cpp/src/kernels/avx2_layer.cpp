// What a layer does beside products, AVX2. Every order of sums is fixed by the sizes alone.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

// 2^k for -126 <= k <= 127.
inline __m256 power_of_two(__m256i k) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

// As exp16 of avx512_layer.cpp; 2^k in two factors, as k may lie beyond a float's exponents.
inline __m256 exp8(__m256 x) {
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

// Up to 8 elements as floats, zeros past `count`; never reads past them.
inline __m256 load(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load(const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); }
inline __m256 load(const float* p, size_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
inline __m256 load(const uint16_t* p, size_t count) {
  if (count >= 8) return load(p);
  uint16_t copy[8] = {};
  __builtin_memcpy(copy, p, count * sizeof *p);
  return load(copy);
}
inline void store(float* p, size_t count, __m256 x) { _mm256_maskstore_ps(p, first_lanes(count), x); }

// Lane i: sum_lanes of x[i], to the bit.
inline __m128 sum_lanes_4(const __m256* x) {
  __m128 y[4];
  for (int i = 0; i < 4; ++i) y[i] = _mm_add_ps(_mm256_castps256_ps128(x[i]), _mm256_extractf128_ps(x[i], 1));
  const __m128 a = _mm_add_ps(_mm_unpacklo_ps(y[0], y[1]), _mm_unpackhi_ps(y[0], y[1]));
  const __m128 b = _mm_add_ps(_mm_unpacklo_ps(y[2], y[3]), _mm_unpackhi_ps(y[2], y[3]));
  return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}

// scores[p] = scale * q.k_p. Lanes along the head, element d in lane d mod 8.
template <class Element>
void score(const float* q, const Element* k, size_t stride, size_t n_pos, size_t d_k, float scale,
           float* scores) {
  const size_t whole = d_k / 8 * 8, rest = d_k - whole;
  size_t p = 0;
  for (; p + 4 <= n_pos; p += 4) {
    const Element* key = k + p * stride;
    __m256 acc[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t d = 0; d < whole; d += 8) {
      const __m256 x = load(q + d);
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) acc[i] = _mm256_fmadd_ps(x, load(key + i * stride + d), acc[i]);
    }
    if (rest != 0) {
      const __m256 x = load(q + whole, rest);
      for (size_t i = 0; i < 4; ++i)
        acc[i] = _mm256_fmadd_ps(x, load(key + i * stride + whole, rest), acc[i]);
    }
    _mm_storeu_ps(scores + p, _mm_mul_ps(sum_lanes_4(acc), _mm_set1_ps(scale)));
  }
  for (; p < n_pos; ++p) {
    const Element* key = k + p * stride;
    __m256 acc = _mm256_setzero_ps();
    for (size_t d = 0; d < whole; d += 8) acc = _mm256_fmadd_ps(load(q + d), load(key + d), acc);
    if (rest != 0) acc = _mm256_fmadd_ps(load(q + whole, rest), load(key + whole, rest), acc);
    scores[p] = sum_lanes(acc) * scale;
  }
}

// scores become e^(score - largest); their sum comes back.
float softmax_terms(float* scores, size_t n_pos) {
  float max = scores[0];
  for (size_t p = 1; p < n_pos; ++p) max = scores[p] > max ? scores[p] : max;
  __m256 total = _mm256_setzero_ps();
  for (size_t p = 0; p < n_pos; p += 8) {
    const size_t left = n_pos - p;
    const __m256 e = exp8(_mm256_sub_ps(load(scores + p, left), _mm256_set1_ps(max)));
    store(scores + p, left, e);
    total = _mm256_add_ps(total, _mm256_and_ps(e, _mm256_castsi256_ps(first_lanes(left))));
  }
  return sum_lanes(total);
}

// out[0 .. 8 * kVectors) = sum_p scores[p] * v_p, positions in order, even and odd ones apart.
// With one vector, only its first `count` elements exist.
template <int kVectors, class Element>
void weigh(const float* scores, const Element* v, size_t stride, size_t n_pos, size_t count, float total,
           float* out) {
  __m256 sum[2][kVectors];
  for (int i = 0; i < kVectors; ++i) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
  const auto add_position = [&](size_t p, __m256* to) {
    const __m256 x = _mm256_set1_ps(scores[p]);
    const Element* value = v + p * stride;
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      to[i] = _mm256_fmadd_ps(x, kVectors > 1 ? load(value + 8 * i) : load(value, count), to[i]);
    }
  };
  size_t p = 0;
  for (; p + 2 <= n_pos; p += 2) {
    add_position(p, sum[0]);
    add_position(p + 1, sum[1]);
  }
  if (p < n_pos) add_position(p, sum[0]);
  for (int i = 0; i < kVectors; ++i) {
    const __m256 y = _mm256_div_ps(_mm256_add_ps(sum[0][i], sum[1][i]), _mm256_set1_ps(total));
    store(out + 8 * i, kVectors > 1 ? 8 : count, y);
  }
}

template <class Element>
void attend(const float* q, const Element* k, const Element* v, size_t stride, size_t n_pos, size_t d_k,
            size_t d_v, float scale, float* scores, float* out) {
  score(q, k, stride, n_pos, d_k, scale, scores);
  const float total = n_pos == 0 ? 1.0f : softmax_terms(scores, n_pos);
  size_t d = 0;
  for (; d + 32 <= d_v; d += 32) weigh<4>(scores, v + d, stride, n_pos, 8, total, out + d);
  for (; d < d_v; d += 8) weigh<1>(scores, v + d, stride, n_pos, d_v - d, total, out + d);
}

// Adjacent pairs: x is a b a b ..., turn is cos sin cos sin ...
void rope_adjacent(float* head, const float* cos_sin, size_t n_rot) {
  for (size_t i = 0; i < n_rot; i += 8) {
    const size_t left = n_rot - i;
    const __m256 x = load(head + i, left), turn = load(cos_sin + i, left);
    const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(x, 0xb1), _mm256_movehdup_ps(turn));
    store(head + i, left, _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(turn), crossed));
  }
}

// Pairs half a head apart.
void rope_halves(float* head, const float* cos_sin, size_t half) {
  for (size_t i = 0; i < half; i += 8) {
    const size_t left = half - i;
    const __m256 t0 = load(cos_sin + 2 * i, 2 * left);
    const __m256 t1 = left > 4 ? load(cos_sin + 2 * i + 8, 2 * left - 8) : _mm256_setzero_ps();
    const __m256 x = _mm256_permute2f128_ps(t0, t1, 0x20), y = _mm256_permute2f128_ps(t0, t1, 0x31);
    const __m256 cos = _mm256_shuffle_ps(x, y, 0x88), sin = _mm256_shuffle_ps(x, y, 0xdd);
    const __m256 a = load(head + i, left), b = load(head + half + i, left);
    store(head + i, left, _mm256_fmsub_ps(a, cos, _mm256_mul_ps(b, sin)));
    store(head + half + i, left, _mm256_fmadd_ps(a, sin, _mm256_mul_ps(b, cos)));
  }
}

}  // namespace

void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps) {
  __m256d a = _mm256_setzero_pd(), b = _mm256_setzero_pd();
  for (size_t i = 0; i < n; i += 8) {
    const __m256 v = load(x + i, n - i);
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    a = _mm256_fmadd_pd(low, low, a);
    b = _mm256_fmadd_pd(high, high, b);
  }
  a = _mm256_add_pd(a, b);
  const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  const double mean = (_mm_cvtsd_f64(c) + _mm_cvtsd_f64(_mm_unpackhi_pd(c, c))) / static_cast<double>(n);
  const __m128d root = _mm_sqrt_pd(_mm_set1_pd(mean + static_cast<double>(eps)));
  const __m256 scale = _mm256_set1_ps(static_cast<float>(1.0 / _mm_cvtsd_f64(root)));
  for (size_t i = 0; i < n; i += 8) {
    store(out + i, n - i, _mm256_mul_ps(_mm256_mul_ps(load(x + i, n - i), scale), load(weight + i, n - i)));
  }
}

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; i += 8)
    store(x + i, n - i, _mm256_add_ps(load(x + i, n - i), load(y + i, n - i)));
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += 8) {
    const __m256 g = load(gate + i, n - i);
    const __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
    store(out + i, n - i, _mm256_mul_ps(silu, load(up + i, n - i)));
  }
}

void rope(float* head, const float* cos_sin, size_t n_rot, bool neox) {
  if (neox) {
    rope_halves(head, cos_sin, n_rot / 2);
  } else {
    rope_adjacent(head, cos_sin, n_rot);
  }
}

void to_f16(const float* x, uint16_t* out, size_t n) {
  for (size_t i = 0; i < n; i += 8) {
    const __m128i h = _mm256_cvtps_ph(load(x + i, n - i), _MM_FROUND_TO_NEAREST_INT);
    if (n - i >= 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), h);
    } else {
      __builtin_memcpy(out + i, &h, (n - i) * sizeof *out);
    }
  }
}

void from_f16(const uint16_t* x, float* out, size_t n) {
  for (size_t i = 0; i < n; i += 8) store(out + i, n - i, load(x + i, n - i));
}

void attend_f16(const float* q, const uint16_t* k, const uint16_t* v, size_t stride, size_t n_pos, size_t d_k,
                size_t d_v, float scale, float* scores, float* out) {
  attend(q, k, v, stride, n_pos, d_k, d_v, scale, scores, out);
}
void attend_f32(const float* q, const float* k, const float* v, size_t stride, size_t n_pos, size_t d_k,
                size_t d_v, float scale, float* scores, float* out) {
  attend(q, k, v, stride, n_pos, d_k, d_v, scale, scores, out);
}

}  // namespace selm::kernels::avx2

#endif
