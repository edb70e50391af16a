// Products of the quantised types for many columns with AMX: the strips, sums and bits of avx512_u8.cpp.
#include "kernels/amx.h"

#if defined(__x86_64__)

#include "kernels/amx_tiles.h"
#include "kernels/avx512.h"
#include "kernels/avx512_requantize.h"

namespace selm::kernels::amx {
namespace {

using namespace avx512;

constexpr size_t kColumns = 2 * kTile;

// Integer sums of one block: [rows / 16, column, row].
struct Sums {
  alignas(64) int32_t x[2][kColumns][kTile];
};

// Rows 16 v to 16 v + 32 and up to 16 columns, or more if kBoth, of which `acts` is the first.
template <bool kBoth>
void multiply(const Strip& strip, size_t s, size_t v, size_t n_tiles, const std::byte* acts, size_t act_bytes,
              Sums& sums) {
  constexpr size_t kStride = kStripVectors * 64;
  zero_tile<0>();
  zero_tile<1>();
  if constexpr (kBoth) {
    zero_tile<2>();
    zero_tile<3>();
  }
#pragma GCC unroll 1
  for (size_t t = 0; t < n_tiles; ++t) {
    const std::byte* a = acts + 64 * t;
    load_tile<6>(strip.codes[s][kTile * t][v], kStride);
    load_tile<4>(a, act_bytes);
    multiply_bytes<0, 4, 6>();
    load_tile<7>(strip.codes[s][kTile * t][v + 1], kStride);
    multiply_bytes<1, 4, 7>();
    if constexpr (kBoth) {
      load_tile<5>(a + kTile * act_bytes, act_bytes);
      multiply_bytes<2, 5, 6>();
      multiply_bytes<3, 5, 7>();
    }
  }
  store_tile<0>(sums.x[0], 64);
  store_tile<1>(sums.x[1], 64);
  if constexpr (kBoth) {
    store_tile<2>(sums.x[0][kTile], 64);
    store_tile<3>(sums.x[1][kTile], 64);
  }
}

// Scales the sums of one block and adds them to the output (or writes it, if `first`).
void add_sums(const Strip& strip, size_t s, size_t v, const Sums& sums, size_t columns,
              const std::byte* scales, size_t act_bytes, size_t rows, bool first, float* out, size_t ldo) {
  for (size_t i = 0; i < 2 && (v + i) * 16 < rows; ++i) {
    const __mmask16 mask = first_lanes(rows - (v + i) * 16);
    const __m512i start = _mm512_load_si512(strip.start[s][v + i]);
    const __m512 scale_w = _mm512_load_ps(strip.scale[s][v + i]);
    for (size_t c = 0; c < columns; ++c) {
      float* place = out + c * ldo + (v + i) * 16;
      const __m512 scale_a = _mm512_set1_ps(*reinterpret_cast<const float*>(scales + c * act_bytes));
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(start, _mm512_load_si512(sums.x[i][c])));
      const __m512 before = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, place);
      _mm512_mask_storeu_ps(place, mask, _mm512_fmadd_ps(sum, _mm512_mul_ps(scale_w, scale_a), before));
    }
  }
}

}  // namespace

void matmul_u8(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
               size_t n_cols, float* out, size_t ldo) {
  const size_t act_bytes = act_u8_bytes(n);
  Tiles tiles;
  Sums sums;
  for_each_strip(type, weights, n_rows, n, (n_cols + kColumns - 1) / kColumns,
                 [&](const Strip& strip, size_t r, size_t rows, size_t k0, size_t count, Ahead& ahead) {
                   for (size_t c = 0; c < n_cols; c += kColumns) {
                     const size_t columns = n_cols - c < kColumns ? n_cols - c : kColumns;
                     const std::byte* q = acts + c * act_bytes + k0;
                     const std::byte* scales =
                         acts + c * act_bytes + act_u8_scale_offset(n) + k0 / 256 * sizeof(float);
                     tiles.set_columns(columns);
                     ahead.step();
                     for (size_t s = 0; 256 * s < count; ++s) {
                       const size_t left = count - 256 * s;
                       const size_t n_tiles = left < 256 ? (left + 63) / 64 : 4;
                       for (size_t v = 0; v < kStripVectors && 16 * v < rows; v += 2) {
                         if (columns > kTile) {
                           multiply<true>(strip, s, v, n_tiles, q + 256 * s, act_bytes, sums);
                         } else {
                           multiply<false>(strip, s, v, n_tiles, q + 256 * s, act_bytes, sums);
                         }
                         add_sums(strip, s, v, sums, columns, scales + s * sizeof(float), act_bytes, rows,
                                  k0 + s == 0, out + c * ldo + r, ldo);
                       }
                     }
                   }
                 });
}

}  // namespace selm::kernels::amx

#endif
