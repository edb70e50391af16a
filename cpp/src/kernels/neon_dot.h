// Products of block types on aarch64: what the plan shares (neon_q32.h, neon_k.h), written once for
// the three tables. Lanes are rows, 4 to a vector. One output adds its blocks in their order:
//   out = fma(float(integer sum of the block), d_w * d_a, out), then its minima likewise.
// Integer sums are exact, so tables, column counts and row counts all give the same bits.
//
// A policy says how int8 products add up; it lives in the file that is compiled for it.
//   few columns, codes straight from the file to registers:
//     dot32<kWide>(w, a): 32 products in 4 partial sums
//     Scales, scales(low, high): 16 int16 scales in the form it likes
//     scaled16<g>(sum, scales, w, a), scaled32<g, kWide>(sum, scales, w, a): sum += scale g * products
//   many columns, codes of 4 rows at a time in a strip:
//     store_codes(to, w): 16 codes of each of 4 rows, 64 bytes, arranged as dot16 wants them
//     load_acts(q, at, a): 16 elements of 4 columns
//     dot16<kWide>(dot, codes, a): the sums of 4 rows x 4 columns, in 4 vectors: a tile
//     arrange(x, y): two columns' values, lanes = rows, to the tile's order; collect: back
//     kRowVectors, spread(x, to): a value of each row as vectors 0 .. kRowVectors of a tile want it
//     columns(x, y, to): likewise of two columns, for two vectors
// kWide: codes beyond +-64 (few columns; +-32 in strips), whose products do not add up far in 16 bits.
#pragma once

#include "kernels/neon.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

constexpr size_t kPiece = 2048;      // elements of a row that a strip holds
constexpr size_t kStripVectors = 2;  // of 4 rows; with kPiece: 16 KB of codes
constexpr size_t kStripRows = 4 * kStripVectors;
constexpr size_t kTileColumns = 4;
constexpr size_t kManyColumns = 4;  // from here on, strips

// 32 codes, or what they are multiplied with: elements 0-15 and 16-31.
struct Codes {
  int8x16_t low, high;
};
[[maybe_unused]] inline Codes load_codes(const void* p) {
  return {load16_signed(p), load16_signed(static_cast<const std::byte*>(p) + 16)};
}
template <int kZero>
[[maybe_unused]] inline Codes centred(Codes w) {
  if constexpr (kZero == 0) return w;
  return {vsubq_s8(w.low, vdupq_n_s8(kZero)), vsubq_s8(w.high, vdupq_n_s8(kZero))};
}

// What the 16 codes of IQ4_NL and IQ4_XS stand for (quant::kIq4Values).
[[maybe_unused]] inline int8x16_t iq4_values(uint8x16_t codes) {
  static constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
  return vqtbl1q_s8(vld1q_s8(kValues), codes);
}

// Lane i: the sum of the 4 lanes of x[i].
[[maybe_unused]] inline int32x4_t sum_4(const int32x4_t* x) {
  return vpaddq_s32(vpaddq_s32(x[0], x[1]), vpaddq_s32(x[2], x[3]));
}

// The halves at `offset` of one block of each of 4 rows.
[[maybe_unused]] inline float32x4_t load_heads(const std::byte* const* row, size_t offset) {
  uint16x4_t h = vdup_n_u16(load_u16(row[0] + offset));
  h = vset_lane_u16(load_u16(row[1] + offset), h, 1);
  h = vset_lane_u16(load_u16(row[2] + offset), h, 2);
  h = vset_lane_u16(load_u16(row[3] + offset), h, 3);
  return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

// 4 rows from row r on. Rows past the last repeat it: their results are not kept.
[[maybe_unused]] inline void row_starts(const std::byte* weights, size_t r, size_t n_rows, size_t row_bytes,
                                        const std::byte** row) {
  for (size_t i = 0; i < 4; ++i) row[i] = weights + (r + i < n_rows ? r + i : n_rows - 1) * row_bytes;
}

// The last rows of a matrix: rare, so out of the way of the rest.
[[maybe_unused, gnu::noinline]] float32x4_t load_fewer(const float* place, size_t rows) {
  float copy[4] = {};
  __builtin_memcpy(copy, place, rows * sizeof(float));
  return vld1q_f32(copy);
}
[[maybe_unused, gnu::noinline]] void store_fewer(float* place, size_t rows, float32x4_t sums) {
  float copy[4];
  vst1q_f32(copy, sums);
  __builtin_memcpy(place, copy, rows * sizeof(float));
}
[[maybe_unused]] inline float32x4_t load_sums(const float* place, size_t rows) {
  return rows >= 4 ? vld1q_f32(place) : load_fewer(place, rows);
}
[[maybe_unused]] inline void store_sums(float* place, size_t rows, float32x4_t sums) {
  if (rows >= 4) {
    vst1q_f32(place, sums);
  } else {
    store_fewer(place, rows, sums);
  }
}

// A value of each of 4 rows, to the strip.
template <class P>
inline void store_rows(float (*to)[4], float32x4_t x) {
  float32x4_t spread[P::kRowVectors];
  P::spread(x, spread);
  for (size_t i = 0; i < P::kRowVectors; ++i) vst1q_f32(to[i], spread[i]);
}
template <class P>
inline void store_rows(int32_t (*to)[4], int32x4_t x) {
  int32x4_t spread[P::kRowVectors];
  P::spread(x, spread);
  for (size_t i = 0; i < P::kRowVectors; ++i) vst1q_s32(to[i], spread[i]);
}

// The outputs of a strip for a tile of columns, in the tile's order: what earlier pieces left, and
// back. All unrolled, so that they may stay in registers in between.
using Outputs = float32x4_t[kStripVectors][kTileColumns];
template <class P>
[[gnu::always_inline]] inline void load_outputs(const float* out, size_t ldo, size_t rows, size_t cols,
                                                bool first, Outputs& acc) {
#pragma GCC unroll 2
  for (size_t v = 0; v < kStripVectors; ++v) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) {
      const bool wanted = !first && c < cols && 4 * v < rows;
      acc[v][c] = wanted ? load_sums(out + c * ldo + 4 * v, rows - 4 * v) : vdupq_n_f32(0.0f);
    }
#pragma GCC unroll 2
    for (size_t c = 0; c < kTileColumns; c += 2) P::arrange(acc[v][c], acc[v][c + 1]);
  }
}
template <class P>
[[gnu::always_inline]] inline void store_outputs(float* out, size_t ldo, size_t rows, size_t cols,
                                                 Outputs& acc) {
#pragma GCC unroll 2
  for (size_t v = 0; v < kStripVectors; ++v) {
#pragma GCC unroll 2
    for (size_t c = 0; c < kTileColumns; c += 2) P::collect(acc[v][c], acc[v][c + 1]);
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) {
      if (c < cols && 4 * v < rows) store_sums(out + c * ldo + 4 * v, rows - 4 * v, acc[v][c]);
    }
  }
}

// A policy's order of tiles where vector c is column c.
struct ColumnTiles {
  static constexpr size_t kRowVectors = 1;
  template <class V>
  static void arrange(V&, V&) {}
  template <class V>
  static void collect(V&, V&) {}
  template <class V>
  static void spread(V x, V* to) {
    to[0] = x;
  }
  static void columns(float x, float y, float32x4_t* to) {
    to[0] = vdupq_n_f32(x);
    to[1] = vdupq_n_f32(y);
  }
  static void load_acts(const int8_t* const* q, size_t at, int8x16_t* a) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kTileColumns; ++c) a[c] = vld1q_s8(q[c] + at);
  }
};

}  // namespace
}  // namespace selm::kernels::neon

#endif
