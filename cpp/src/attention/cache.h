// Keys and values of one layer. A layer that sees everything keeps every position; one with a window
// keeps the last positions in a ring, and the first ones (sinks) apart.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "kernels/kernels.h"
#include "model/hparams.h"

namespace selm::attention {

// Tokens leave the window for the far sums a block at a time, at fixed positions, so that no result
// depends on how the tokens came in; a session may take back as many without a snapshot.
inline constexpr size_t kBlock = kernels::kStrip;

struct CacheShape {
  size_t n_head_kv, d_k, d_v;
  kernels::KvFormat format;
  size_t positions;  // capacity; of a ring, whole chunks
  size_t sinks;      // 0 unless it is a ring

  size_t row_bytes() const { return kernels::kv_row_bytes(format, d_k > d_v ? d_k : d_v); }
};
CacheShape cache_shape(const model::Hparams& h, const model::LayerShape& layer, kernels::KvFormat format,
                       size_t context, size_t batch);
uint64_t cache_bytes(const CacheShape& shape);  // a multiple of 64

class Cache {
 public:
  // memory: cache_bytes(shape); of a ring, zeroed.
  Cache(const CacheShape& shape, std::byte* memory) : shape_(shape), memory_(memory) {}

  void store(const kernels::Table& table, size_t head, size_t position, const float* k, const float* v);
  // Positions [from, from + n) within one chunk.
  kernels::AttentionChunk chunk(size_t head, size_t from, size_t n) const;
  kernels::AttentionChunk sinks(size_t head, size_t n) const;
  // One position as floats.
  void load_key(const kernels::Table& table, size_t head, size_t position, float* out) const;
  void load_value(const kernels::Table& table, size_t head, size_t position, float* out) const;

  const CacheShape& shape() const { return shape_; }
  // Positions below `end` have been stored (by whichever threads).
  void wrote(size_t end) { written_ = end > written_ ? end : written_; }
  // Positions from here on are held as they were stored (the sinks aside).
  size_t oldest() const { return written_ > shape_.positions ? written_ - shape_.positions : 0; }
  void clear() { written_ = 0; }
  // As after a sequence of n tokens of which those from `first` on are held; n - first <= positions.
  void hold(size_t first, size_t n) { written_ = first == 0 ? n : first + shape_.positions; }
  // Calls visit(bytes, count), which gives a Status, for what is stored of the positions [first, n) and
  // of the sinks among the first n, in an order that does not depend on where it lies.
  template <class Visit>
  Status each_row(size_t first, size_t n, const Visit& visit) const;
  // Bytes in use for a sequence of n tokens.
  uint64_t bytes(size_t n) const;

 private:
  std::byte* key(size_t head, size_t slot) const {
    return memory_ + (head * (shape_.positions + shape_.sinks) + slot) * shape_.row_bytes();
  }
  template <class Visit>
  Status each_slot(std::byte* rows, size_t bytes, size_t slot, size_t n, const Visit& visit) const;
  std::byte* value(size_t head, size_t slot) const { return key(shape_.n_head_kv + head, slot); }
  kernels::AttentionChunk rows(size_t head, size_t slot, size_t n) const;
  void put(const kernels::Table& table, const float* x, size_t n, std::byte* out) const;

  CacheShape shape_;
  std::byte* memory_;   // [n_head_kv][positions + sinks] keys, then as many values
  size_t written_ = 0;  // see wrote()
};

// Rows that lie side by side without a gap go together.
template <class Visit>
Status Cache::each_slot(std::byte* rows, size_t bytes, size_t slot, size_t n, const Visit& visit) const {
  const size_t stride = shape_.row_bytes();
  if (bytes == stride) return n == 0 ? Status() : visit(rows + slot * stride, n * bytes);
  for (size_t i = slot; i < slot + n; ++i) SELM_TRY(visit(rows + i * stride, bytes));
  return {};
}

template <class Visit>
Status Cache::each_row(size_t first, size_t n, const Visit& visit) const {
  const size_t slot = first % shape_.positions;
  const size_t before_end = n - first < shape_.positions - slot ? n - first : shape_.positions - slot;
  const size_t sinks = n < shape_.sinks ? n : shape_.sinks;
  for (size_t head = 0; head < 2 * shape_.n_head_kv; ++head) {  // keys, then values
    const size_t bytes =
        kernels::kv_row_bytes(shape_.format, head < shape_.n_head_kv ? shape_.d_k : shape_.d_v);
    std::byte* rows = key(head, 0);
    SELM_TRY(each_slot(rows, bytes, slot, before_end, visit));
    SELM_TRY(each_slot(rows, bytes, 0, n - first - before_end, visit));
    SELM_TRY(each_slot(rows, bytes, shape_.positions, sinks, visit));
  }
  return {};
}

}  // namespace selm::attention
