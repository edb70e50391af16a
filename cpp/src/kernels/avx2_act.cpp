// Activations to int8, AVX2: the integers and scales of the scalar table, bit for bit.
#include "kernels/avx2.h"

#if defined(__x86_64__)

namespace selm::kernels::avx2 {
namespace {

constexpr int kInfinityBits = 0x7f800000;

// Magnitudes as integers: they order as the floats do, infinity and NaN above all.
inline __m256i magnitude_bits(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

struct Scale {
  float inverse, scale;  // both zero: a block of zeros; scale NaN: not finite
};
inline Scale scale_of(__m256i largest) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  const int bits = _mm_cvtsi128_si32(m);
  if (bits >= kInfinityBits) return {0.0f, __builtin_nanf("")};
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof amax);
  if (amax < kTinyBlock) return {0.0f, 0.0f};
  return {127.0f / amax, amax / 127.0f};
}

// 32 integers in order; their sum in 8 parts.
inline __m256i quantize_32_values(const float* x, Scale s, int8_t* q) {
  __m256i v[4];
  for (size_t i = 0; i < 4; ++i) {
    v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(s.inverse)));
    if (s.inverse == 0.0f) v[i] = _mm256_setzero_si256();  // 0 * infinity
  }
  const __m256i a = _mm256_packs_epi32(v[0], v[1]), b = _mm256_packs_epi32(v[2], v[3]);
  const __m256i bytes =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
  return bytes;
}

// Lanes of 128 bits: the sums of the 16 bytes of each, in their first int32.
inline __m256i sums_of_16(__m256i q) {
  const __m256i ones = _mm256_set1_epi8(1);
  __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
  return _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
}

void quantize_32(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act32_bytes(n));
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* scale = reinterpret_cast<float*>(out + act32_scale_offset(n));
  auto* sum = reinterpret_cast<int32_t*>(out + act32_sum_offset(n));
  for (size_t b = 0; b < n / 32; ++b, x += 32) {
    __m256i largest = _mm256_setzero_si256();
    for (size_t i = 0; i < 32; i += 8)
      largest = _mm256_max_epi32(largest, magnitude_bits(_mm256_loadu_ps(x + i)));
    const Scale s = scale_of(largest);
    const __m256i sums = sums_of_16(quantize_32_values(x, s, q + 32 * b));
    scale[b] = s.scale;
    sum[b] = _mm256_extract_epi32(sums, 0) + _mm256_extract_epi32(sums, 4);
  }
}

void quantize_256(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act256_bytes(n));
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* scale = reinterpret_cast<float*>(out + act256_scale_offset(n));
  auto* sum = reinterpret_cast<int16_t*>(out + act256_sum_offset(n));
  for (size_t b = 0; b < n / 256; ++b, x += 256) {
    __m256i largest = _mm256_setzero_si256();
    for (size_t i = 0; i < 256; i += 8)
      largest = _mm256_max_epi32(largest, magnitude_bits(_mm256_loadu_ps(x + i)));
    const Scale s = scale_of(largest);
    scale[b] = s.scale;
    for (size_t g = 0; g < 8; ++g) {
      const __m256i sums = sums_of_16(quantize_32_values(x + 32 * g, s, q + 256 * b + 32 * g));
      sum[16 * b + 2 * g] = static_cast<int16_t>(_mm256_extract_epi32(sums, 0));
      sum[16 * b + 2 * g + 1] = static_cast<int16_t>(_mm256_extract_epi32(sums, 4));
    }
  }
}

}  // namespace

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out) {
  if (format == ActFormat::q8_32) {
    quantize_32(x, n, out);
  } else if (format == ActFormat::q8_256) {
    quantize_256(x, n, out);
  } else {
    __builtin_memset(out, 0, round_up(n * sizeof(float), 64));
    __builtin_memcpy(out, x, n * sizeof(float));
  }
}

}  // namespace selm::kernels::avx2

#endif
