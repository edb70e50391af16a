// The truth: plain C++, sums in double, one way to do each thing. Also what other processors run.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/layout.h"
#include "quant/dequantize.h"
#include "quant/f16.h"
#include "quant/unpack.h"

namespace selm::kernels {
namespace {

using quant::Type;

// ---- Activations ------------------------------------------------------------------------------

// Scale and integers of one block: q = x * (127 / amax) to the nearest, ties to even. A block with
// an infinity or NaN gets the scale NaN, so that the outcome shows it.
float quantize_block(const float* x, size_t n, int8_t* q) {
  float amax = 0;
  bool finite = true;
  for (size_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    amax = std::fmax(amax, std::fabs(x[i]));
  }
  if (!finite || amax < kTinyBlock) {
    std::memset(q, 0, n);
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float inverse = 127.0f / amax;
  for (size_t i = 0; i < n; ++i) q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return amax / 127.0f;
}

int32_t sum_of(const int8_t* q, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += q[i];
  return sum;
}

void quantize_row(ActFormat format, const float* x, size_t n, std::byte* out) {
  std::memset(out, 0, act_row_bytes(format, n));
  auto* q = reinterpret_cast<int8_t*>(out);
  if (format == ActFormat::f32) {
    std::memcpy(out, x, n * sizeof(float));
  } else if (format == ActFormat::q8_32) {
    auto* scale = reinterpret_cast<float*>(out + act32_scale_offset(n));
    auto* sum = reinterpret_cast<int32_t*>(out + act32_sum_offset(n));
    for (size_t b = 0; b < n / 32; ++b) {
      scale[b] = quantize_block(x + 32 * b, 32, q + 32 * b);
      sum[b] = sum_of(q + 32 * b, 32);
    }
  } else if (format == ActFormat::u8_256) {
    auto* scale = reinterpret_cast<float*>(out + act_u8_scale_offset(n));
    for (size_t k = 0; k < n; k += 256) {
      scale[k / 256] = quantize_block(x + k, std::min<size_t>(n - k, 256), q + k);
    }
    for (size_t k = 0; k < act_u8_scale_offset(n); ++k) out[k] ^= std::byte{128};
  } else {
    auto* scale = reinterpret_cast<float*>(out + act256_scale_offset(n));
    auto* sum = reinterpret_cast<int16_t*>(out + act256_sum_offset(n));
    for (size_t b = 0; b < n / 256; ++b) {
      scale[b] = quantize_block(x + 256 * b, 256, q + 256 * b);
      for (size_t g = 16 * b; g < 16 * b + 16; ++g) sum[g] = static_cast<int16_t>(sum_of(q + 16 * g, 16));
    }
  }
}

// ---- Products ---------------------------------------------------------------------------------

int32_t dot_i8(const int8_t* a, const int8_t* b, size_t n) {
  int32_t sum = 0;
  for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

constexpr size_t kColumns = 16;  // columns that share one unpacking

// One row times up to kColumns columns; sum[c] receives the products.
void row_32(quant::Unpack32 unpack, const std::byte* row, size_t block_bytes, size_t n, const Act32* acts,
            size_t n_cols, double* sum) {
  quant::Block32 w;
  for (size_t b = 0; b < n / 32; ++b) {
    unpack(row + b * block_bytes, w);
    for (size_t c = 0; c < n_cols; ++c) {
      const Act32& a = acts[c];
      const auto dot = static_cast<double>(dot_i8(w.q, a.q + 32 * b, 32));
      sum[c] += static_cast<double>(a.scale[b]) *
                (static_cast<double>(w.d) * dot + static_cast<double>(w.m) * static_cast<double>(a.sum[b]));
    }
  }
}

void row_256(quant::Unpack256 unpack, const std::byte* row, size_t block_bytes, size_t n, const Act256* acts,
             size_t n_cols, double* sum) {
  quant::Block256 w;
  for (size_t b = 0; b < n / 256; ++b) {
    unpack(row + b * block_bytes, w);
    for (size_t c = 0; c < n_cols; ++c) {
      const Act256& a = acts[c];
      int32_t dot = 0, minima = 0;  // |dot| <= 256 * 127 * 127 * 128 < 2^31
      for (size_t g = 0; g < 16; ++g) {
        dot += w.scale[g] * dot_i8(w.q + 16 * g, a.q + 256 * b + 16 * g, 16);
        minima += w.min[g] * a.sum[16 * b + g];
      }
      sum[c] += static_cast<double>(a.scale[b]) * (static_cast<double>(w.d) * static_cast<double>(dot) -
                                                   static_cast<double>(w.dmin) * static_cast<double>(minima));
    }
  }
}

float load_float(Type type, const std::byte* row, size_t k) {
  if (type == Type::f16) return quant::load_f16(row + 2 * k);
  if (type == Type::bf16) return quant::bf16_to_f32(quant::load_u16(row + 2 * k));
  float x = 0;
  std::memcpy(&x, row + 4 * k, sizeof x);
  return x;
}

void row_float(Type type, const std::byte* row, size_t n, const float* const* acts, size_t n_cols,
               double* sum) {
  for (size_t k = 0; k < n; ++k) {
    const auto w = static_cast<double>(load_float(type, row, k));
    for (size_t c = 0; c < n_cols; ++c) sum[c] += w * static_cast<double>(acts[c][k]);
  }
}

void matmul(Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
            size_t n_cols, float* out, size_t ldo) {
  const size_t row_size = quant::row_bytes(type, n);
  const size_t act_size = act_row_bytes(act_format(type), n);
  const size_t block_bytes = quant::info(type).block_bytes;
  const quant::Unpack32 unpack32 = quant::unpack32(type);
  const quant::Unpack256 unpack256 = quant::unpack256(type);
  for (size_t c0 = 0; c0 < n_cols; c0 += kColumns) {
    const size_t count = n_cols - c0 < kColumns ? n_cols - c0 : kColumns;
    Act32 a32[kColumns] = {};
    Act256 a256[kColumns] = {};
    const float* floats[kColumns] = {};
    for (size_t c = 0; c < count; ++c) {
      const std::byte* act = acts + (c0 + c) * act_size;
      a32[c] = act32(act, n);
      a256[c] = act256(act, n);
      floats[c] = reinterpret_cast<const float*>(act);
    }
    for (size_t r = 0; r < n_rows; ++r) {
      const std::byte* row = weights + r * row_size;
      double sum[kColumns] = {};
      if (unpack32 != nullptr) {
        row_32(unpack32, row, block_bytes, n, a32, count, sum);
      } else if (unpack256 != nullptr) {
        row_256(unpack256, row, block_bytes, n, a256, count, sum);
      } else {
        row_float(type, row, n, floats, count, sum);
      }
      for (size_t c = 0; c < count; ++c) out[(c0 + c) * ldo + r] = static_cast<float>(sum[c]);
    }
  }
}

// ---- The rest of a layer ----------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float* out, size_t n, float eps) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const auto scale =
      static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + static_cast<double>(eps)));
  for (size_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void add(float* x, const float* y, size_t n) {
  for (size_t i = 0; i < n; ++i) x[i] += y[i];
}

void silu_mul(const float* gate, const float* up, float* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void rope(float* head, const float* cos_sin, size_t n_rot, bool neox) {
  const size_t half = n_rot / 2;
  for (size_t i = 0; i < half; ++i) {
    float& a = head[neox ? i : 2 * i];
    float& b = head[neox ? i + half : 2 * i + 1];
    const float cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
    const float x = a, y = b;
    a = x * cos - y * sin;
    b = x * sin + y * cos;
  }
}

void to_f16(const float* x, uint16_t* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = quant::f32_to_f16(x[i]);
}

void from_f16(const uint16_t* x, float* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = quant::f16_to_f32(x[i]);
}

// The elements of a cached row as floats.
void unpack_kv(KvFormat format, const std::byte* row, size_t n, float* out) {
  switch (format) {
    case KvFormat::f16:
      return quant::dequantize_row(Type::f16, row, out, n);
    case KvFormat::f32:
      return quant::dequantize_row(Type::f32, row, out, n);
    case KvFormat::q8_0:
      return quant::dequantize_row(Type::q8_0, row, out, n);
  }
}

// One query at a time: all scores, then the weighted sum.
void attend(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
            size_t n_queries, float* scratch, float* partials) {
  const size_t widest = padded(std::max(chunk.d_k, chunk.d_v));
  float* row = scratch;
  double* sums = reinterpret_cast<double*>(scratch + widest);  // of 2 * kStrip * widest floats
  float* scores = scratch + 2 * kStrip * widest;
  for (size_t r = 0; r < n_queries; ++r) {
    float* partial = partials + r * partial_floats(chunk.d_v);
    float max = -std::numeric_limits<float>::infinity();
    for (size_t p = visible[r].from; p < visible[r].to; ++p) {
      unpack_kv(chunk.format, chunk.keys + p * chunk.stride, chunk.d_k, row);
      double dot = 0;
      for (size_t d = 0; d < chunk.d_k; ++d)
        dot += static_cast<double>(queries[r][d]) * static_cast<double>(row[d]);
      scores[p] = static_cast<float>(dot) * chunk.scale;
      max = scores[p] > max ? scores[p] : max;
    }
    double total = 0;
    for (size_t p = visible[r].from; p < visible[r].to; ++p) {
      scores[p] = std::exp(scores[p] - max);
      total += static_cast<double>(scores[p]);
    }
    std::fill_n(sums, chunk.d_v, 0.0);
    for (size_t p = visible[r].from; p < visible[r].to; ++p) {
      unpack_kv(chunk.format, chunk.values + p * chunk.stride, chunk.d_v, row);
      for (size_t d = 0; d < chunk.d_v; ++d)
        sums[d] += static_cast<double>(scores[p]) * static_cast<double>(row[d]);
    }
    for (size_t d = 0; d < chunk.d_v; ++d) partial[d] = static_cast<float>(sums[d]);
    partial[padded(chunk.d_v)] = max;
    partial[padded(chunk.d_v) + 1] = static_cast<float>(total);
  }
}

void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width) {
  for (size_t r = 0; r < n_rows; ++r) {
    for (size_t i = 0; i < width; ++i) {
      double sum = static_cast<double>(out[r * out_stride + i]);
      for (size_t p = 0; p < count; ++p)
        sum += static_cast<double>(weights[r * weight_stride + p]) *
               static_cast<double>(values[p * value_stride + i]);
      out[r * out_stride + i] = static_cast<float>(sum);
    }
  }
}

void exponentials(float* x, size_t n, float shift) {
  for (size_t i = 0; i < n; ++i) x[i] = std::exp(x[i] - shift);
}

constexpr Table kScalar = {
    Isa::scalar, "scalar", quantize_row, matmul,       quant::dequantize_row,
    rms_norm,    add,      silu_mul,     rope,         to_f16,
    from_f16,    attend,   accumulate,   exponentials, scalar_matmul_u8,
};

}  // namespace

const Table* scalar_table() { return &kScalar; }

}  // namespace selm::kernels
