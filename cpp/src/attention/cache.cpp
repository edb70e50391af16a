#include "attention/cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace selm::attention {
namespace {

size_t whole_chunks(size_t n) { return (n + kernels::kChunk - 1) / kernels::kChunk * kernels::kChunk; }

quant::Type type_of(kernels::KvFormat format) {
  switch (format) {
    case kernels::KvFormat::f16:
      return quant::Type::f16;
    case kernels::KvFormat::f32:
      return quant::Type::f32;
    case kernels::KvFormat::q8_0:
      return quant::Type::q8_0;
  }
  return quant::Type::f32;
}

}  // namespace

CacheShape cache_shape(const model::Hparams& h, const model::LayerShape& layer, kernels::KvFormat format,
                       size_t context, size_t batch) {
  CacheShape shape{layer.n_head_kv, h.d_k, h.d_v, format, context, 0};
  if (layer.attention == model::Attention::softmax) return shape;
  // What a piece of `batch` tokens sees and adds, a block that is being filled, and one to go back to.
  const size_t live = h.selm.window + batch + 2 * kBlock;
  shape.positions = whole_chunks(std::min(context, live));
  shape.sinks = h.selm.sinks;
  return shape;
}

uint64_t cache_bytes(const CacheShape& shape) {
  const uint64_t bytes = uint64_t{2} * shape.n_head_kv * (shape.positions + shape.sinks) * shape.row_bytes();
  return (bytes + 63) / 64 * 64;
}

void Cache::put(const kernels::Table& table, const float* x, size_t n, std::byte* out) const {
  switch (shape_.format) {
    case kernels::KvFormat::f16:
      return table.to_f16(x, reinterpret_cast<uint16_t*>(out), n);
    case kernels::KvFormat::f32:
      std::memcpy(out, x, n * sizeof(float));
      return;
    case kernels::KvFormat::q8_0:
      return kernels::quantize_q8_0(x, n, out);
  }
}

void Cache::store(const kernels::Table& table, size_t head, size_t position, const float* k, const float* v) {
  const size_t slot = position % shape_.positions;
  put(table, k, shape_.d_k, key(head, slot));
  put(table, v, shape_.d_v, value(head, slot));
  if (position < shape_.sinks) {
    put(table, k, shape_.d_k, key(head, shape_.positions + position));
    put(table, v, shape_.d_v, value(head, shape_.positions + position));
  }
}

kernels::AttentionChunk Cache::rows(size_t head, size_t slot, size_t n) const {
  return {shape_.format,
          key(head, slot),
          value(head, slot),
          shape_.row_bytes(),
          n,
          shape_.d_k,
          shape_.d_v,
          1.0f / std::sqrt(static_cast<float>(shape_.d_k))};
}

kernels::AttentionChunk Cache::chunk(size_t head, size_t from, size_t n) const {
  return rows(head, from % shape_.positions, n);
}

kernels::AttentionChunk Cache::sinks(size_t head, size_t n) const { return rows(head, shape_.positions, n); }

void Cache::load_key(const kernels::Table& table, size_t head, size_t position, float* out) const {
  table.dequantize_row(type_of(shape_.format), key(head, position % shape_.positions), out, shape_.d_k);
}

void Cache::load_value(const kernels::Table& table, size_t head, size_t position, float* out) const {
  table.dequantize_row(type_of(shape_.format), value(head, position % shape_.positions), out, shape_.d_v);
}

uint64_t Cache::bytes(size_t n) const {
  const size_t rows = std::min(n, shape_.positions) + std::min(n, shape_.sinks);
  return uint64_t{2} * shape_.n_head_kv * rows * shape_.row_bytes();
}

}  // namespace selm::attention
