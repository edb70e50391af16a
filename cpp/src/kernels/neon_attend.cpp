// Attention, NEON: 4 positions (scores) or 4 elements of a head (values) to a vector.
#include "kernels/neon.h"

#if defined(__aarch64__)

#include "kernels/attend_tile.h"

namespace selm::kernels::neon {
namespace {

struct Vector {
  using Reg = float32x4_t;
  static constexpr size_t kLanes = 4;
  // Of 32 registers: 2 x 8 sums, 8 keys, 1 query; 6 x 4 sums, 4 values, 1 weight.
  static constexpr size_t kScoreRows = 2;
  static constexpr size_t kValueRows = 6;
  static constexpr size_t kValueRegs = 4;

  static Reg zero() { return vdupq_n_f32(0.0f); }
  static Reg set1(float x) { return vdupq_n_f32(x); }
  static Reg load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Reg x) { vst1q_f32(p, x); }
  static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg max(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static Reg exp(Reg x) { return exp4(x); }
  static float sum_lanes(Reg x) { return neon::sum_lanes(x); }
  static float max_lanes(Reg x) { return vmaxvq_f32(x); }

  static void unpack(KvFormat format, const std::byte* row, size_t n, float* out) {
    if (format == KvFormat::q8_0) {
      for (size_t i = 0; i < n; i += 32, row += 34) {
        const float scale = load_half(row);
        for (size_t j = 0; j < 32; j += 8) {
          const int16x8_t q = vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(row) + 2 + j));
          store(out + i + j, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), scale));
          store(out + i + j + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(q)), scale));
        }
      }
      return;  // n is a multiple of 32, so of kPadded
    }
    if (format == KvFormat::f16) {
      const size_t whole = n / 4 * 4;
      for (size_t i = 0; i < whole; i += 4) store(out + i, load_4_halves(row + 2 * i));
      for (size_t i = whole; i < n; ++i) out[i] = load_half(row + 2 * i);
    } else {
      __builtin_memcpy(out, row, n * sizeof(float));
    }
    for (size_t i = n; i < padded(n); ++i) out[i] = 0.0f;
  }

  static void turn(const float* from, size_t from_stride, float* to, size_t to_stride) {
    const Reg r0 = load(from), r1 = load(from + from_stride);
    const Reg r2 = load(from + 2 * from_stride), r3 = load(from + 3 * from_stride);
    const Reg a = vzip1q_f32(r0, r2), b = vzip1q_f32(r1, r3), c = vzip2q_f32(r0, r2), d = vzip2q_f32(r1, r3);
    store(to, vzip1q_f32(a, b));
    store(to + to_stride, vzip2q_f32(a, b));
    store(to + 2 * to_stride, vzip1q_f32(c, d));
    store(to + 3 * to_stride, vzip2q_f32(c, d));
  }
};

}  // namespace

void attend(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
            size_t n_queries, float* scratch, float* partials) {
  attend_tile<Vector>(chunk, queries, visible, n_queries, scratch, partials);
}

void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width) {
  kernels::accumulate<Vector>(weights, weight_stride, n_rows, values, value_stride, count, out, out_stride,
                              width);
}

void exponentials(float* x, size_t n, float shift) { kernels::exponentials<Vector>(x, n, shift); }

}  // namespace selm::kernels::neon

#endif
