// What the aarch64 files share. Helpers are in an anonymous namespace (see layout.h); the functions
// of the tables that need no more than ARMv8.0 are declared here, the file named beside them, and
// serve all three tables. Products differ by table: neon_dot.h.
#pragma once

#if defined(__aarch64__)

#include <arm_neon.h>

#include "kernels/layout.h"

namespace selm::kernels::neon {

using Matmul = void (*)(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                        size_t n_cols, float* out, size_t ldo);
Matmul matmul_float(quant::Type type);  // neon_float.cpp; nullptr for block types

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out);  // neon_act.cpp

// neon_layer.cpp
void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps);
void add(float* x, const float* y, size_t n);
void silu_mul(const float* gate, const float* up, float* out, size_t n);
void rope(float* head, const float* cos_sin, size_t n_rot, bool neox);
void to_f16(const float* x, uint16_t* out, size_t n);
void from_f16(const uint16_t* x, float* out, size_t n);

// neon_attend.cpp
void attend(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
            size_t n_queries, float* scratch, float* partials);
void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width);
void exponentials(float* x, size_t n, float shift);

namespace {

[[maybe_unused]] inline uint8x16_t load16(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
[[maybe_unused]] inline int8x16_t load16_signed(const void* p) {
  return vld1q_s8(static_cast<const int8_t*>(p));
}
[[maybe_unused]] inline uint16_t load_u16(const void* p) {
  uint16_t x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
[[maybe_unused]] inline uint32_t load_u32(const void* p) {
  uint32_t x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// 4 halves, at any alignment, as floats.
[[maybe_unused]] inline float32x4_t load_4_halves(const void* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(p))));
}
[[maybe_unused]] inline float load_half(const void* p) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(load_u16(p)))), 0);
}

// The one order in which 4 lanes become one number: (0 + 2) + (1 + 3).
[[maybe_unused]] inline float sum_lanes(float32x4_t x) {
  return vpadds_f32(vadd_f32(vget_low_f32(x), vget_high_f32(x)));
}

// 2^k for -126 <= k <= 127.
[[maybe_unused]] inline float32x4_t power_of_two(int32x4_t k) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(k, vdupq_n_s32(127)), 23));
}

// As exp16 of avx512.h; 2^k in two factors, as k may lie beyond a float's exponents. NaN stays NaN.
[[maybe_unused]] inline float32x4_t exp4(float32x4_t x) {
  x = vminq_f32(vdupq_n_f32(100.0f), vmaxq_f32(vdupq_n_f32(-110.0f), x));
  const float32x4_t k = vrndnq_f32(vmulq_n_f32(x, 1.44269504088896341f));
  float32x4_t r = vfmsq_f32(x, k, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, k, vdupq_n_f32(-2.12194440e-4f));
  float32x4_t y = vdupq_n_f32(1.9875691500e-4f);
  y = vfmaq_f32(vdupq_n_f32(1.3981999507e-3f), y, r);
  y = vfmaq_f32(vdupq_n_f32(8.3334519073e-3f), y, r);
  y = vfmaq_f32(vdupq_n_f32(4.1665795894e-2f), y, r);
  y = vfmaq_f32(vdupq_n_f32(1.6666665459e-1f), y, r);
  y = vfmaq_f32(vdupq_n_f32(5.0000001201e-1f), y, r);
  y = vaddq_f32(vfmaq_f32(r, y, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
  const int32x4_t whole = vcvtq_s32_f32(k), half = vshrq_n_s32(whole, 1);
  return vmulq_f32(vmulq_f32(y, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}

}  // namespace
}  // namespace selm::kernels::neon

#endif
