#include "quant/dequantize.h"

#include <cmath>
#include <cstring>

#include "quant/f16.h"
#include "quant/unpack.h"

namespace selm::quant {
namespace {

void floats_of(Type type, const std::byte* source, float* out, size_t n) {
  if (type == Type::f32) {
    if (n != 0) std::memcpy(out, source, n * sizeof(float));
  } else if (type == Type::f16) {
    for (size_t i = 0; i < n; ++i) out[i] = load_f16(source + 2 * i);
  } else {
    for (size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load_u16(source + 2 * i));
  }
}

}  // namespace

// The order of the roundings is the gguf package's; `x - 0` and `1 * x` change no bit.
void dequantize_row(Type type, const std::byte* source, float* out, size_t n) {
  const size_t bytes = info(type).block_bytes;
  if (const Unpack32 unpack = unpack32(type)) {
    Block32 b;
    for (size_t k = 0; k < n; k += 32, source += bytes) {
      unpack(source, b);
      const bool has_min = type == Type::q4_1 || type == Type::q5_1;  // -0 + 0 would lose its sign
      for (size_t i = 0; i < 32; ++i) {
        const float product = b.d * static_cast<float>(b.q[i]);
        out[k + i] = has_min ? product + b.m : product;
      }
    }
  } else if (const Unpack256 unpack_k = unpack256(type)) {
    Block256 b;
    for (size_t k = 0; k < n; k += 256, source += bytes) {
      unpack_k(source, b);
      for (size_t i = 0; i < 256; ++i) {
        const float scale = b.d * static_cast<float>(b.scale[i / 16]);
        const float min = b.dmin * static_cast<float>(b.min[i / 16]);
        out[k + i] = scale * static_cast<float>(b.q[i]) - min;
      }
    }
  } else {
    floats_of(type, source, out, n);
  }
}

bool row_is_finite(Type type, const std::byte* source, size_t n) {
  const size_t bytes = info(type).block_bytes;
  if (const Unpack32 unpack = unpack32(type)) {
    Block32 b;
    for (size_t k = 0; k < n; k += 32, source += bytes) {
      unpack(source, b);
      if (!std::isfinite(b.d) || !std::isfinite(b.m)) return false;
    }
  } else if (const Unpack256 unpack_k = unpack256(type)) {
    Block256 b;
    for (size_t k = 0; k < n; k += 256, source += bytes) {
      unpack_k(source, b);
      if (!std::isfinite(b.d) || !std::isfinite(b.dmin)) return false;
    }
  } else {
    float x = 0;
    const size_t each = info(type).block_bytes;
    for (size_t i = 0; i < n; ++i) {
      floats_of(type, source + i * each, &x, 1);
      if (!std::isfinite(x)) return false;
    }
  }
  return true;
}

}  // namespace selm::quant
