// Weights of any quantised type as int8 with one scale for 256 elements, for products with many columns
// (`Table::matmul_u8`): the scales of groups then cost nothing in the inner loop, which is integer dot
// products alone. The rounding to 8 bits adds a normalised squared error of 4e-5 to weights that are
// normally distributed.
#pragma once

#if defined(__x86_64__)

#include "kernels/avx512.h"

namespace selm::kernels::avx512 {

inline constexpr size_t kStripVectors = 4;  // of 16 rows
inline constexpr size_t kStripRows = 16 * kStripVectors;
inline constexpr size_t kStripBlocks = 2;  // of 256 elements: 32 KB of codes stay in the first cache

// A piece of a strip of rows. Codes past the end of a row are 0.
struct Strip {
  alignas(64)
      int8_t codes[kStripBlocks][64][kStripVectors][64];  // [block, k / 4, row / 16, row % 16 * 4 + k % 4]
  alignas(64) int32_t start[kStripBlocks][kStripVectors][16];  // what u8_256's zero adds: -128 * sum of codes
  alignas(64) float scale[kStripBlocks][kStripVectors][16];
};

// Elements k0 .. k0 + count (k0 a multiple of 256, count at most 256 * kStripBlocks) of up to kStripRows
// rows, `row_bytes` apart. Rows past the last repeat it: their results are not kept.
using Requantize = void (*)(const std::byte* weights, size_t rows, size_t row_bytes, size_t k0, size_t count,
                            Strip& strip);
Requantize requantize(quant::Type type);  // nullptr for F32, F16 and BF16; avx512_requantize.cpp

namespace {

// Brings the next strip's bytes to the second cache while this one is multiplied, a little at a time:
// the processor's own prefetching does not foresee pieces of rows.
class Ahead {
 public:
  Ahead(const std::byte* from, size_t bytes, size_t steps) : next_(from), end_(from + bytes) {
    per_step_ = steps == 0 ? 0 : (bytes / steps + 64) / 64 * 64;
  }
  void step() {
    const std::byte* stop = static_cast<size_t>(end_ - next_) < per_step_ ? end_ : next_ + per_step_;
    for (; next_ < stop; next_ += 64) _mm_prefetch(reinterpret_cast<const char*>(next_), _MM_HINT_T1);
  }

 private:
  const std::byte *next_, *end_;
  size_t per_step_;
};

// Calls multiply(strip, first row, rows, k0, count, ahead) for every piece of every strip, pieces of a
// strip in order; it should call ahead.step() `steps` times.
template <class Multiply>
inline void for_each_strip(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, size_t steps,
                           const Multiply& multiply) {
  constexpr size_t kPiece = 256 * kStripBlocks;
  const Requantize unpack = requantize(type);
  const size_t row_bytes = quant::row_bytes(type, n);
  Strip strip;
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    const size_t next = n_rows - r - rows < kStripRows ? n_rows - r - rows : kStripRows;
    Ahead ahead(weights + (r + rows) * row_bytes, next * row_bytes, steps * ((n + kPiece - 1) / kPiece));
    for (size_t k0 = 0; k0 < n; k0 += kPiece) {
      const size_t count = n - k0 < kPiece ? n - k0 : kPiece;
      unpack(weights + r * row_bytes, rows, row_bytes, k0, count, strip);
      multiply(strip, r, rows, k0, count, ahead);
    }
  }
}

}  // namespace
}  // namespace selm::kernels::avx512

#endif
