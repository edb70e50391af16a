#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "quant/f16.h"
#include "quant/types.h"

namespace selm::kernels {

size_t kv_row_bytes(KvFormat format, size_t n) {
  switch (format) {
    case KvFormat::f16:
      return n * 2;
    case KvFormat::f32:
      return n * 4;
    case KvFormat::q8_0:
      return quant::row_bytes(quant::Type::q8_0, n);
  }
  return 0;
}

void quantize_q8_0(const float* x, size_t n, std::byte* out) {
  constexpr size_t kBlock = 32;
  for (size_t i = 0; i < n; i += kBlock, out += 2 + kBlock) {
    float largest = 0.0f;
    float sum = 0.0f;  // not finite where an element is not
    for (size_t j = 0; j < kBlock; ++j) {
      largest = std::max(largest, std::fabs(x[i + j]));
      sum += x[i + j] * 0.0f;
    }
    const float scale = largest / 127.0f + sum;
    const float inverse = scale > 1e-30f && std::isfinite(scale) ? 1.0f / scale : 0.0f;
    const uint16_t half = quant::f32_to_f16(scale);
    std::memcpy(out, &half, sizeof half);
    for (size_t j = 0; j < kBlock; ++j) {
      const long q = std::isfinite(x[i + j]) ? std::lrint(x[i + j] * inverse) : 1;
      out[2 + j] = static_cast<std::byte>(std::clamp(q, -127L, 127L));
    }
  }
}

namespace {

// e^x; zero where it is lost beside 1, as products of denormal numbers are many times slower.
float share(float x) { return x < -60.0f ? 0.0f : std::exp(x); }

}  // namespace

void fold_partial(float* state, const float* partial, size_t d_v) {
  const size_t at = padded(d_v);
  const float old_max = state[at];
  const float new_max = partial[at];
  if (new_max == -std::numeric_limits<float>::infinity()) return;
  const float max = new_max > old_max ? new_max : old_max;
  const float old_share = share(old_max - max);  // -infinity: 0
  const float new_share = share(new_max - max);
  for (size_t d = 0; d < d_v; ++d) state[d] = state[d] * old_share + partial[d] * new_share;
  state[at] = max;
  state[at + 1] = state[at + 1] * old_share + partial[at + 1] * new_share;
}

void finish_partial(const float* state, size_t d_v, float* out) {
  const float total = state[padded(d_v) + 1];
  for (size_t d = 0; d < d_v; ++d) out[d] = total == 0.0f ? 0.0f : state[d] / total;
}

}  // namespace selm::kernels
