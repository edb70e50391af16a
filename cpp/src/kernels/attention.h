// Attention over the cache, in chunks of positions. A chunk's softmax is worked out with the chunk's
// own maximum (a partial); partials are folded together in the order of the chunks. Chunks lie at
// fixed positions, so an output has the same bits however queries are grouped, however a prompt is
// cut, and whichever threads took which chunks. (Online softmax: Milakov and Gimelshein 2018,
// "Online normalizer calculation for softmax"; chunks side by side: Dao et al. 2023, "Flash-Decoding".)
#pragma once

#include <cstddef>
#include <cstdint>

namespace selm::kernels {

// How the cache holds one position of one head.
enum class KvFormat : uint32_t { f16, f32, q8_0 };
// Bytes of n elements; for q8_0, n is a multiple of 32.
size_t kv_row_bytes(KvFormat format, size_t n);
// Blocks of type Q8_0; a block with an infinity or NaN gets that as its scale, so that it shows.
void quantize_q8_0(const float* x, size_t n, std::byte* out);

inline constexpr size_t kChunk = 256;      // positions
inline constexpr size_t kMaxQueries = 64;  // of one call; twice as many read and unpack a chunk half as often
inline constexpr size_t kPadded = 16;      // scratch rows are whole vectors of every instruction set
inline constexpr size_t kStrip = 32;       // positions that are unpacked at a time

constexpr size_t padded(size_t n) { return (n + kPadded - 1) / kPadded * kPadded; }

// Keys and values of one chunk of one KV head.
struct AttentionChunk {
  KvFormat format;
  const std::byte* keys;    // [n_pos] rows of d_k elements, `stride` bytes apart
  const std::byte* values;  // [n_pos] rows of d_v elements
  size_t stride;
  size_t n_pos;  // 1 .. kChunk
  size_t d_k, d_v;
  float scale;  // of the scores
};

// The positions of a chunk that a query sees: [from, to).
struct Visible {
  uint32_t from, to;
};

// A partial: the sum of e^(score - max) * value, then at padded(d_v) the max and the sum of
// e^(score - max). The max is -infinity where the query sees nothing of the chunk.
constexpr size_t partial_floats(size_t d_v) { return padded(d_v) + kPadded; }
// What one call of Table::attend needs beside its arguments.
constexpr size_t attention_scratch_floats(size_t d_k, size_t d_v) {
  const size_t widest = d_k > d_v ? padded(d_k) : padded(d_v);
  return 2 * kStrip * widest + kMaxQueries * kChunk;
}

// state becomes state and partial together. The first partial may be copied as the first state.
void fold_partial(float* state, const float* partial, size_t d_v);
// out[d] = sum / weight; zeros where nothing was seen.
void finish_partial(const float* state, size_t d_v, float* out);

}  // namespace selm::kernels
