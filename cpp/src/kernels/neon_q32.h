// Products of the 32-element types on aarch64, for any policy; see neon_dot.h.
#pragma once

#include "kernels/neon_dot.h"

#if defined(__aarch64__)

namespace selm::kernels::neon {
namespace {

inline Codes nibbles(const std::byte* p) {
  const uint8x16_t x = load16(p);
  return {vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(x, 4))};
}

// 16 in the bytes whose bit is set.
inline int8x16_t sixteens(uint8x16_t bytes) {
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
  return vreinterpretq_s8_u8(vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(16)));
}
inline Codes five_bits(const std::byte* bits, const std::byte* qs) {
  const Codes x = nibbles(qs);
  const uint8x16_t high = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(bits)));
  const uint8x16_t first = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1));
  return {vorrq_s8(x.low, sixteens(vqtbl1q_u8(high, first))),
          vorrq_s8(x.high, sixteens(vqtbl1q_u8(high, vaddq_u8(first, vdupq_n_u8(2)))))};
}

// A type: bytes of a block; the zero point; whether blocks have a minimum (the half behind the
// scale); wide codes (see neon_dot.h); the codes of a block.
struct Q4_0 {
  static constexpr size_t kBlock = 32, kBytes = 18;
  static constexpr int kZero = 8;
  static constexpr bool kMin = false, kWide = false;
  static Codes load(const std::byte* p) { return nibbles(p + 2); }
};
struct Q4_1 {
  static constexpr size_t kBlock = 32, kBytes = 20;
  static constexpr int kZero = 0;
  static constexpr bool kMin = true, kWide = false;
  static Codes load(const std::byte* p) { return nibbles(p + 4); }
};
struct Q5_0 {
  static constexpr size_t kBlock = 32, kBytes = 22;
  static constexpr int kZero = 16;
  static constexpr bool kMin = false, kWide = false;
  static Codes load(const std::byte* p) { return five_bits(p + 2, p + 6); }
};
struct Q5_1 {
  static constexpr size_t kBlock = 32, kBytes = 24;
  static constexpr int kZero = 0;
  static constexpr bool kMin = true, kWide = false;
  static Codes load(const std::byte* p) { return five_bits(p + 4, p + 8); }
};
struct Q8_0 {
  static constexpr size_t kBlock = 32, kBytes = 34;
  static constexpr int kZero = 0;
  static constexpr bool kMin = false, kWide = true;
  static Codes load(const std::byte* p) { return load_codes(p + 2); }
};
struct Iq4Nl {
  static constexpr size_t kBlock = 32, kBytes = 18;
  static constexpr int kZero = 0;
  static constexpr bool kMin = false, kWide = true;
  static Codes load(const std::byte* p) {
    const Codes x = nibbles(p + 2);
    return {iq4_values(vreinterpretq_u8_s8(x.low)), iq4_values(vreinterpretq_u8_s8(x.high))};
  }
};

// ---- Few columns: 4 rows side by side, codes never leave the registers ---------------------------

// Block b of 4 rows. The zero point is taken off with the activations' sum: cheaper than from codes.
template <class P, class T, int kCols>
[[gnu::always_inline]] inline void add_block_32(const std::byte* const* row, const Act32* acts, size_t b,
                                                float32x4_t* acc) {
  int32x4_t part[kCols][4];
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    const Codes w = T::load(row[i]);
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c)
      part[c][i] = P::template dot32<T::kWide>(w, load_codes(acts[c].q + 32 * b));
  }
  const float32x4_t d = load_heads(row, 0);
#pragma GCC unroll 2
  for (int c = 0; c < kCols; ++c) {
    const float scale = acts[c].scale[b];
    int32x4_t dot = sum_4(part[c]);
    if constexpr (T::kZero != 0) dot = vmlsq_s32(dot, vld1q_dup_s32(acts[c].sum + b), vdupq_n_s32(T::kZero));
    acc[c] = vfmaq_f32(acc[c], vcvtq_f32_s32(dot), vmulq_n_f32(d, scale));
    if constexpr (T::kMin)
      acc[c] = vfmaq_f32(acc[c], load_heads(row, 2), vdupq_n_f32(scale * static_cast<float>(acts[c].sum[b])));
  }
}

template <class P, class T, int kCols>
void few_columns_32(const std::byte* weights, size_t n_rows, size_t n, const Act32* acts, float* out,
                    size_t ldo) {
  const size_t n_blocks = n / 32;
  for (size_t r = 0; r < n_rows; r += 4) {
    const std::byte* row[4];
    row_starts(weights, r, n_rows, n_blocks * T::kBytes, row);
    float32x4_t acc[kCols];
    for (int c = 0; c < kCols; ++c) acc[c] = vdupq_n_f32(0.0f);
    for (size_t b = 0; b < n_blocks; ++b) {
      add_block_32<P, T, kCols>(row, acts, b, acc);
      for (size_t i = 0; i < 4; ++i) row[i] += T::kBytes;
    }
    for (size_t c = 0; c < kCols; ++c) store_sums(out + c * ldo + r, n_rows - r, acc[c]);
  }
}

template <class P, class T>
void few_32(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
            float* out, size_t ldo) {
  const size_t act_bytes = act32_bytes(n);
  size_t c = 0;
  for (; c + 2 <= n_cols; c += 2) {
    const Act32 act[2] = {act32(acts + c * act_bytes, n), act32(acts + (c + 1) * act_bytes, n)};
    few_columns_32<P, T, 2>(weights, n_rows, n, act, out + c * ldo, ldo);
  }
  if (c < n_cols) {
    const Act32 act = act32(acts + c * act_bytes, n);
    few_columns_32<P, T, 1>(weights, n_rows, n, &act, out + c * ldo, ldo);
  }
}

// ---- Many columns: a strip of rows is unpacked once ----------------------------------------------

template <class P>
struct Strip32 {
  static constexpr size_t kBlocks = kPiece / 32;
  alignas(64) int8_t codes[kBlocks][kStripVectors][2][64];  // zero point taken off
  float d[kBlocks][kStripVectors][P::kRowVectors][4];
  float m[kBlocks][kStripVectors][P::kRowVectors][4];  // only types with minima
};

// Blocks b0 .. b0 + count of `rows` rows.
template <class P, class T>
void unpack_strip_32(const std::byte* weights, size_t rows, size_t row_bytes, size_t b0, size_t count,
                     Strip32<P>& strip) {
  for (size_t v = 0; v < kStripVectors; ++v) {
    const std::byte* row[4];
    row_starts(weights + b0 * T::kBytes, 4 * v, rows, row_bytes, row);
    for (size_t b = 0; b < count; ++b) {
      int8x16_t low[4], high[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) {
        const Codes w = centred<T::kZero>(T::load(row[i]));
        low[i] = w.low;
        high[i] = w.high;
      }
      P::store_codes(strip.codes[b][v][0], low);
      P::store_codes(strip.codes[b][v][1], high);
      store_rows<P>(strip.d[b][v], load_heads(row, 0));
      if constexpr (T::kMin) store_rows<P>(strip.m[b][v], load_heads(row, 2));
      for (size_t i = 0; i < 4; ++i) row[i] += T::kBytes;
    }
  }
}

// Block b of the strip, block b0 + b of the row.
template <class P, class T>
[[gnu::always_inline]] inline void add_tile_32(const Strip32<P>& strip, const Act32* acts,
                                               const int8_t* const* q, size_t b0, size_t b, Outputs& acc) {
  int32x4_t dot[kStripVectors][kTileColumns];
#pragma GCC unroll 8
  for (size_t i = 0; i < kStripVectors * kTileColumns; ++i)
    dot[i / kTileColumns][i % kTileColumns] = vdupq_n_s32(0);
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {
    int8x16_t a[kTileColumns];
    P::load_acts(q, 32 * (b0 + b) + 16 * half, a);
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v)
      P::template dot16<T::kWide>(dot[v], strip.codes[b][v][half], a);
  }
#pragma GCC unroll 2
  for (size_t c = 0; c < kTileColumns; c += 2) {
    const float scale0 = acts[c].scale[b0 + b], scale1 = acts[c + 1].scale[b0 + b];
    float32x4_t scale[2], sum[2];
    P::columns(scale0, scale1, scale);
    if constexpr (T::kMin) {
      P::columns(scale0 * static_cast<float>(acts[c].sum[b0 + b]),
                 scale1 * static_cast<float>(acts[c + 1].sum[b0 + b]), sum);
    }
#pragma GCC unroll 2
    for (size_t v = 0; v < kStripVectors; ++v) {
#pragma GCC unroll 2
      for (size_t i = 0; i < 2; ++i) {
        const float32x4_t d = vmulq_f32(vld1q_f32(strip.d[b][v][i % P::kRowVectors]), scale[i]);
        float32x4_t x = vfmaq_f32(acc[v][c + i], vcvtq_f32_s32(dot[v][c + i]), d);
        if constexpr (T::kMin) x = vfmaq_f32(x, vld1q_f32(strip.m[b][v][i % P::kRowVectors]), sum[i]);
        acc[v][c + i] = x;
      }
    }
  }
}

template <class P, class T>
void many_32(const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts, size_t n_cols,
             float* out, size_t ldo) {
  using Strip = Strip32<P>;
  const size_t n_blocks = n / 32, row_bytes = n_blocks * T::kBytes, act_bytes = act32_bytes(n);
  Strip strip;
  for (size_t r = 0; r < n_rows; r += kStripRows) {
    const size_t rows = n_rows - r < kStripRows ? n_rows - r : kStripRows;
    for (size_t b0 = 0; b0 < n_blocks; b0 += Strip::kBlocks) {
      const size_t count = n_blocks - b0 < Strip::kBlocks ? n_blocks - b0 : Strip::kBlocks;
      unpack_strip_32<P, T>(weights + r * row_bytes, rows, row_bytes, b0, count, strip);
      for (size_t c = 0; c < n_cols; c += kTileColumns) {
        Act32 act[kTileColumns];
        const int8_t* q[kTileColumns];
        for (size_t i = 0; i < kTileColumns; ++i) {  // past the last column: it again, not kept
          act[i] = act32(acts + (c + i < n_cols ? c + i : n_cols - 1) * act_bytes, n);
          q[i] = act[i].q;
        }
        Outputs acc;
        float* place = out + c * ldo + r;
        load_outputs<P>(place, ldo, rows, n_cols - c, b0 == 0, acc);
        for (size_t b = 0; b < count; ++b) add_tile_32<P, T>(strip, act, q, b0, b, acc);
        store_outputs<P>(place, ldo, rows, n_cols - c, acc);
      }
    }
  }
}

}  // namespace
}  // namespace selm::kernels::neon

#endif
