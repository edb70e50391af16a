// Attention, AVX-512: 16 positions (scores) or 16 elements of a head (values) to a vector.
#include "kernels/avx512.h"

#if defined(__x86_64__)

#include "kernels/attend_tile.h"

namespace selm::kernels::avx512 {
namespace {

struct Vector {
  using Reg = __m512;
  static constexpr size_t kLanes = 16;
  // Of 32 registers: 8 x 2 sums, 2 keys, 1 query; 6 x 4 sums, 4 values, 1 weight.
  static constexpr size_t kScoreRows = 8;
  static constexpr size_t kValueRows = 6;
  static constexpr size_t kValueRegs = 4;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg exp(Reg x) { return exp16(x); }
  static float sum_lanes(Reg x) { return avx512::sum_lanes(x); }
  static float max_lanes(Reg x) { return _mm512_reduce_max_ps(x); }

  static void unpack(KvFormat format, const std::byte* row, size_t n, float* out) {
    if (format == KvFormat::q8_0) {
      for (size_t i = 0; i < n; i += 32, row += 34) {
        const __m512 scale = _mm512_set1_ps(_cvtsh_ss(load_u16(row)));
        store(out + i, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(row + 2)))));
        store(out + i + 16, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(row + 18)))));
      }
      return;
    }
    for (size_t i = 0; i < n; i += 16) {
      const __mmask16 mask = first_lanes(n - i);
      store(out + i, format == KvFormat::f16 ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + 2 * i))
                                             : _mm512_maskz_loadu_ps(mask, row + 4 * i));
    }
  }

  static void turn(const float* from, size_t from_stride, float* to, size_t to_stride) {
    __m512i r[16];
    for (size_t i = 0; i < 16; ++i) r[i] = load64(from + i * from_stride);
    transpose16(r);
    for (size_t i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_stride, r[i]);
  }
};

}  // namespace

void attend(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
            size_t n_queries, float* scratch, float* partials) {
  attend_tile<Vector>(chunk, queries, visible, n_queries, scratch, partials);
}

void accumulate(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                size_t value_stride, size_t count, float* out, size_t out_stride, size_t width) {
  kernels::accumulate<Vector>(weights, weight_stride, n_rows, values, value_stride, count, out, out_stride,
                              width);
}

void exponentials(float* x, size_t n, float shift) { kernels::exponentials<Vector>(x, n, shift); }

}  // namespace selm::kernels::avx512

#endif
