// Activations to int8, NEON: the integers and scales of the scalar table, bit for bit.
#include "kernels/neon.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000;

struct Scale {
  float inverse, scale;  // both zero: a block of zeros; scale NaN: not finite
};

// Magnitudes are compared as integers: they order as the floats do, infinity and NaN above all.
inline Scale scale_of(const float* x, size_t n) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (size_t i = 0; i < n; i += 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + i));
    largest = vmaxq_u32(largest, vbicq_u32(bits, vdupq_n_u32(0x80000000)));
  }
  const uint32_t bits = vmaxvq_u32(largest);
  if (bits >= kInfinityBits) return {0.0f, __builtin_nanf("")};
  float amax;
  __builtin_memcpy(&amax, &bits, sizeof amax);
  if (amax < kTinyBlock) return {0.0f, 0.0f};
  return {127.0f / amax, amax / 127.0f};
}

// To the nearest, ties to even. In blocks with an infinity, 0 * infinity is NaN, and that becomes 0.
inline int16x8_t round_8(const float* x, float inverse) {
  const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), inverse));
  const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), inverse));
  return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
}

// 16 integers; their sum is returned.
inline int16_t quantize_16_values(const float* x, float inverse, int8_t* q) {
  const int8x16_t bytes = vcombine_s8(vmovn_s16(round_8(x, inverse)), vmovn_s16(round_8(x + 8, inverse)));
  vst1q_s8(q, bytes);
  return vaddlvq_s8(bytes);
}

void quantize_32(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act32_bytes(n));
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* scale = reinterpret_cast<float*>(out + act32_scale_offset(n));
  auto* sum = reinterpret_cast<int32_t*>(out + act32_sum_offset(n));
  for (size_t b = 0; b < n / 32; ++b, x += 32, q += 32) {
    const Scale s = scale_of(x, 32);
    scale[b] = s.scale;
    sum[b] = quantize_16_values(x, s.inverse, q) + quantize_16_values(x + 16, s.inverse, q + 16);
  }
}

void quantize_256(const float* x, size_t n, std::byte* out) {
  __builtin_memset(out, 0, act256_bytes(n));
  auto* q = reinterpret_cast<int8_t*>(out);
  auto* sum = reinterpret_cast<int16_t*>(out + act256_sum_offset(n));
  auto* scale = reinterpret_cast<float*>(out + act256_scale_offset(n));
  for (size_t b = 0; b < n / 256; ++b) {
    const Scale s = scale_of(x + 256 * b, 256);
    scale[b] = s.scale;
    for (size_t g = 16 * b; g < 16 * b + 16; ++g)
      sum[g] = quantize_16_values(x + 16 * g, s.inverse, q + 16 * g);
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

}  // namespace selm::kernels::neon

#endif
