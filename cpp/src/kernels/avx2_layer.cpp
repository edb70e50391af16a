// What a layer does beside products, AVX2. Every order of sums is fixed by the sizes alone.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

// Up to 8 elements as floats, zeros past `count`; never reads past them.
inline __m256 load(const uint16_t* p) { return _mm256_cvtph_ps(load16(p)); }
inline __m256 load(const float* p, size_t count) { return _mm256_maskload_ps(p, first_lanes(count)); }
inline __m256 load(const uint16_t* p, size_t count) {
  if (count >= 8) return load(p);
  uint16_t copy[8] = {};
  __builtin_memcpy(copy, p, count * sizeof *p);
  return load(copy);
}
inline void store(float* p, size_t count, __m256 x) { _mm256_maskstore_ps(p, first_lanes(count), x); }

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

}  // namespace selm::kernels::avx2

#endif
