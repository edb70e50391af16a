// Products of many columns, AVX-512 VNNI: a strip of rows becomes int8 once and meets all columns.
//
// One output: for each block of 256 elements, in order,
//   out += float(start + sum of a * w) * (scale_w * scale_a)
// with the integer sum exact (below 2^23), so any grouping of rows and columns gives the same bits.
#include "kernels/avx512.h"
#include "kernels/avx512_requantize.h"

#if defined(__x86_64__)

namespace selm::kernels::avx512 {
namespace {

// 4 vectors of rows by 6 columns: 24 registers of sums, 4 of weights.

// Rows that exist, of each vector.
struct RowMasks {
  __mmask16 v[kStripVectors];
};

// The integer sums of one block. A function of its own that stores them: inlined, GCC 12 runs out of
// registers for what follows and stores every sum in every round.
template <size_t kCols>
[[gnu::noinline]] void dot_block(const Strip& strip, size_t s, size_t steps, const uint8_t* acts,
                                 size_t act_bytes, __m512i (*sums)[kStripVectors]) {
  __m512i dot[kCols][kStripVectors];
  repeat<kCols>(
      [&](auto c) { repeat<kStripVectors>([&](auto v) { dot[c][v] = load64(strip.start[s][v]); }); });
#pragma GCC unroll 1
  for (size_t k = 0; k < steps; ++k) {
    __m512i w[kStripVectors];
    repeat<kStripVectors>([&](auto v) { w[v] = _mm512_load_si512(strip.codes[s][k][v]); });
    repeat<kCols>([&](auto c) {
      const __m512i a = _mm512_set1_epi32(load_i32(acts + c * act_bytes + 4 * k));
      repeat<kStripVectors>([&](auto v) { dot[c][v] = _mm512_dpbusd_epi32(dot[c][v], a, w[v]); });
    });
  }
  repeat<kCols>([&](auto c) { repeat<kStripVectors>([&](auto v) { sums[c][v] = dot[c][v]; }); });
}

template <size_t kCols>
inline void add_block(const Strip& strip, size_t s, size_t steps, const uint8_t* acts, size_t act_bytes,
                      const float* scales, bool first, const RowMasks& rows, float* out, size_t ldo) {
  __m512i dot[kCols][kStripVectors];
  dot_block<kCols>(strip, s, steps, acts, act_bytes, dot);
  for (size_t c = 0; c < kCols; ++c) {
    const __m512 scale_a = _mm512_set1_ps(
        *reinterpret_cast<const float*>(reinterpret_cast<const std::byte*>(scales) + c * act_bytes));
#pragma GCC unroll 4
    for (size_t v = 0; v < kStripVectors; ++v) {
      float* place = out + c * ldo + 16 * v;
      const __m512 scale = _mm512_mul_ps(_mm512_load_ps(strip.scale[s][v]), scale_a);
      const __m512 before = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows.v[v], place);
      _mm512_mask_storeu_ps(place, rows.v[v], _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[c][v]), scale, before));
    }
  }
}

// Adds a piece of the row to columns c .. c + kCols.
template <size_t kCols>
inline void add_piece(const Strip& strip, size_t n, size_t k0, size_t count, const std::byte* acts,
                      const RowMasks& rows, float* out, size_t ldo) {
  const size_t act_bytes = act_u8_bytes(n);
  const auto* q = reinterpret_cast<const uint8_t*>(acts) + k0;
  const auto* scales = reinterpret_cast<const float*>(acts + act_u8_scale_offset(n)) + k0 / 256;
  for (size_t s = 0; 256 * s < count; ++s) {
    const size_t steps = (count - 256 * s < 256 ? count - 256 * s : 256) / 4;
    add_block<kCols>(strip, s, steps, q + 256 * s, act_bytes, scales + s, k0 + s == 0, rows, out, ldo);
  }
}

}  // namespace

void matmul_u8(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
               size_t n_cols, float* out, size_t ldo) {
  const size_t act_bytes = act_u8_bytes(n);
  for_each_strip(type, weights, n_rows, n, (n_cols + 5) / 6,
                 [&](const Strip& strip, size_t r, size_t rows, size_t k0, size_t count, Ahead& ahead) {
                   RowMasks masks;
                   for (size_t v = 0; v < kStripVectors; ++v)
                     masks.v[v] = first_lanes(rows > 16 * v ? rows - 16 * v : 0);
                   size_t c = 0;
                   for (; c + 6 <= n_cols; c += 6) {
                     add_piece<6>(strip, n, k0, count, acts + c * act_bytes, masks, out + c * ldo + r, ldo);
                     ahead.step();
                   }
                   for (; c + 3 <= n_cols; c += 3)
                     add_piece<3>(strip, n, k0, count, acts + c * act_bytes, masks, out + c * ldo + r, ldo);
                   for (; c < n_cols; ++c)
                     add_piece<1>(strip, n, k0, count, acts + c * act_bytes, masks, out + c * ldo + r, ldo);
                 });
}

}  // namespace selm::kernels::avx512

#endif
