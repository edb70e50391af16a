// Activations to int8, AVX-512: the integers and scales of the scalar table, bit for bit.
#include "kernels/avx512.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

constexpr int kInfinityBits = 0x7f800000;

struct Scale {
  float inverse, scale;  // both zero: a block of zeros; scale NaN: not finite
};
inline Scale scale_of(__m512i largest) {
  const int bits = _mm512_reduce_max_epi32(largest);
  if (bits >= kInfinityBits) return {0.0f, __builtin_nanf("")};
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof amax);
  if (amax < kTinyBlock) return {0.0f, 0.0f};
  return {127.0f / amax, amax / 127.0f};
}

// 16 integers, zeros where the block has no scale (0 * infinity must not reach the conversion).
inline __m128i quantize16(__m512 x, Scale s) {
  const __mmask16 keep = s.inverse != 0.0f ? 0xffff : 0;
  return _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(x, _mm512_set1_ps(s.inverse))));
}

inline int32_t sum16(__m128i q) {  // of 16 int8
  return _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(q));
}

void quantize_32(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act32_bytes(n));
  auto* q = reinterpret_cast<__m128i*>(out);
  auto* scale = reinterpret_cast<float*>(out + act32_scale_offset(n));
  auto* sum = reinterpret_cast<int32_t*>(out + act32_sum_offset(n));
  for (size_t b = 0; b < n / 32; ++b, x += 32) {
    const __m512 a = _mm512_loadu_ps(x), c = _mm512_loadu_ps(x + 16);
    const Scale s = scale_of(_mm512_max_epi32(magnitude_bits(a), magnitude_bits(c)));
    const __m128i low = quantize16(a, s), high = quantize16(c, s);
    _mm_storeu_si128(q + 2 * b, low);
    _mm_storeu_si128(q + 2 * b + 1, high);
    scale[b] = s.scale;
    sum[b] = _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_cvtepi8_epi32(low), _mm512_cvtepi8_epi32(high)));
  }
}

void quantize_256(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act256_bytes(n));
  auto* q = reinterpret_cast<__m128i*>(out);
  auto* scale = reinterpret_cast<float*>(out + act256_scale_offset(n));
  auto* sum = reinterpret_cast<int16_t*>(out + act256_sum_offset(n));
  for (size_t b = 0; b < n / 256; ++b, x += 256) {
    __m512i largest = _mm512_setzero_si512();
    for (size_t g = 0; g < 16; ++g) {
      largest = _mm512_max_epi32(largest, magnitude_bits(_mm512_loadu_ps(x + 16 * g)));
    }
    const Scale s = scale_of(largest);
    scale[b] = s.scale;
    for (size_t g = 0; g < 16; ++g) {
      const __m128i integers = quantize16(_mm512_loadu_ps(x + 16 * g), s);
      _mm_storeu_si128(q + 16 * b + g, integers);
      sum[16 * b + g] = static_cast<int16_t>(sum16(integers));
    }
  }
}

// As quantize_256 gives them, 128 added.
void quantize_u8(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 128, act_u8_scale_offset(n));
  __builtin_memset(out + act_u8_scale_offset(n), 0, act_u8_bytes(n) - act_u8_scale_offset(n));
  auto* q = reinterpret_cast<__m128i*>(out);
  auto* scale = reinterpret_cast<float*>(out + act_u8_scale_offset(n));
  for (size_t k0 = 0; k0 < n; k0 += 256) {
    const size_t end = n - k0 < 256 ? n : k0 + 256;
    __m512i largest = _mm512_setzero_si512();
    for (size_t k = k0; k < end; k += 16) {
      largest = _mm512_max_epi32(largest, magnitude_bits(_mm512_loadu_ps(x + k)));
    }
    const Scale s = scale_of(largest);
    scale[k0 / 256] = s.scale;
    for (size_t k = k0; k < end; k += 16) {
      const __m128i integers = quantize16(_mm512_loadu_ps(x + k), s);
      _mm_storeu_si128(q + k / 16, _mm_xor_si128(integers, _mm_set1_epi8(-128)));
    }
  }
}

}  // namespace

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out) {
  if (format == ActFormat::q8_32) {
    quantize_32(x, n, out);
  } else if (format == ActFormat::q8_256) {
    quantize_256(x, n, out);
  } else if (format == ActFormat::u8_256) {
    quantize_u8(x, n, out);
  } else {
    __builtin_memset(out, 0, round_up(n * sizeof(float), 64));
    __builtin_memcpy(out, x, n * sizeof(float));
  }
}

}  // namespace selm::kernels::avx512

#endif
