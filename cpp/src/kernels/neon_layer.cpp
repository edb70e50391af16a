// What a layer does beside products, NEON. Every order of sums is fixed by the sizes alone.
#include "kernels/neon.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

// Up to 4 elements as floats, zeros past `count`; never reads or writes past them.
inline float32x4_t load(const float* p, size_t count) {
  if (count >= 4) return vld1q_f32(p);
  float copy[4] = {};
  __builtin_memcpy(copy, p, count * sizeof *p);
  return vld1q_f32(copy);
}
inline void store(float* p, size_t count, float32x4_t x) {
  if (count >= 4) {
    vst1q_f32(p, x);
  } else {
    float copy[4];
    vst1q_f32(copy, x);
    __builtin_memcpy(p, copy, count * sizeof *p);
  }
}

struct Pairs {
  float32x4_t a, b;
};
inline Pairs rotate(float32x4_t a, float32x4_t b, float32x4x2_t turn) {
  return {vfmsq_f32(vmulq_f32(a, turn.val[0]), b, turn.val[1]),
          vfmaq_f32(vmulq_f32(b, turn.val[0]), a, turn.val[1])};
}

// Adjacent pairs.
void rope_adjacent(float* head, const float* cos_sin, size_t n_rot) {
  size_t i = 0;
  for (; i + 8 <= n_rot; i += 8) {
    const float32x4x2_t x = vld2q_f32(head + i);
    const Pairs y = rotate(x.val[0], x.val[1], vld2q_f32(cos_sin + i));
    const float32x4x2_t turned = {{y.a, y.b}};
    vst2q_f32(head + i, turned);
  }
  for (; i < n_rot; i += 2) {
    const float a = head[i], b = head[i + 1], cos = cos_sin[i], sin = cos_sin[i + 1];
    head[i] = a * cos - b * sin;
    head[i + 1] = a * sin + b * cos;
  }
}

// Pairs half a head apart.
void rope_halves(float* head, const float* cos_sin, size_t half) {
  size_t i = 0;
  for (; i + 4 <= half; i += 4) {
    const Pairs y = rotate(vld1q_f32(head + i), vld1q_f32(head + half + i), vld2q_f32(cos_sin + 2 * i));
    vst1q_f32(head + i, y.a);
    vst1q_f32(head + half + i, y.b);
  }
  for (; i < half; ++i) {
    const float a = head[i], b = head[half + i], cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
    head[i] = a * cos - b * sin;
    head[half + i] = a * sin + b * cos;
  }
}

}  // namespace

void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps) {
  float64x2_t a = vdupq_n_f64(0.0), b = a;
  for (size_t i = 0; i < n; i += 4) {
    const float32x4_t v = load(x + i, n - i);
    const float64x2_t low = vcvt_f64_f32(vget_low_f32(v)), high = vcvt_high_f64_f32(v);
    a = vfmaq_f64(a, low, low);
    b = vfmaq_f64(b, high, high);
  }
  const double mean = vpaddd_f64(vaddq_f64(a, b)) / static_cast<double>(n);
  const float64x1_t root = vsqrt_f64(vdup_n_f64(mean + static_cast<double>(eps)));
  const auto scale = static_cast<float>(1.0 / vget_lane_f64(root, 0));
  for (size_t i = 0; i < n; i += 4)
    store(out + i, n - i, vmulq_f32(vmulq_n_f32(load(x + i, n - i), scale), load(weight + i, n - i)));
}

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; i += 4) store(x + i, n - i, vaddq_f32(load(x + i, n - i), load(y + i, n - i)));
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; i += 4) {
    const float32x4_t g = load(gate + i, n - i);
    const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0f), exp4(vnegq_f32(g))));
    store(out + i, n - i, vmulq_f32(silu, load(up + i, n - i)));
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
  for (size_t i = 0; i < n; i += 4) {
    const uint16x4_t h = vreinterpret_u16_f16(vcvt_f16_f32(load(x + i, n - i)));
    if (n - i >= 4) {
      vst1_u16(out + i, h);
    } else {
      __builtin_memcpy(out + i, &h, (n - i) * sizeof *out);
    }
  }
}

void from_f16(const uint16_t* x, float* out, size_t n) {
  size_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, load_4_halves(x + i));
  for (; i < n; ++i) out[i] = load_half(x + i);
}

}  // namespace selm::kernels::neon

#endif
