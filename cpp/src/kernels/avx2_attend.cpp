// Attention, AVX2: 8 positions (scores) or 8 elements of a head (values) to a vector.
#include "kernels/avx2.h"

#if defined(__x86_64__)

#include "kernels/attend_tile.h"

namespace selm::kernels::avx2 {
namespace {

struct Vector {
  using Reg = __m256;
  static constexpr size_t kLanes = 8;
  // Of 16 registers: 2 x 4 sums, 4 keys, 1 query; 5 x 2 sums, 2 values, 1 weight.
  static constexpr size_t kScoreRows = 2;
  static constexpr size_t kValueRows = 5;
  static constexpr size_t kValueRegs = 2;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg exp(Reg x) { return exp8(x); }
  static float sum_lanes(Reg x) { return avx2::sum_lanes(x); }
  static float max_lanes(Reg x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }

  static void unpack(KvFormat format, const std::byte* row, size_t n, float* out) {
    if (format == KvFormat::q8_0) {
      for (size_t i = 0; i < n; i += 32, row += 34) {
        const __m256 scale = _mm256_set1_ps(_cvtsh_ss(load_u16(row)));
        for (size_t j = 0; j < 32; j += 8) {
          const __m256i q =
              _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + 2 + j)));
          store(out + i + j, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(q)));
        }
      }
      return;
    }
    const size_t whole = n / 8 * 8;
    if (format == KvFormat::f16) {
      for (size_t i = 0; i < whole; i += 8) store(out + i, _mm256_cvtph_ps(load16(row + 2 * i)));
      for (size_t i = whole; i < n; ++i) out[i] = _cvtsh_ss(load_u16(row + 2 * i));
    } else {
      __builtin_memcpy(out, row, n * sizeof(float));
    }
    for (size_t i = n; i < padded(n); ++i) out[i] = 0.0f;
  }

  static void turn(const float* from, size_t from_stride, float* to, size_t to_stride) {
    __m256i r[8];
    for (size_t i = 0; i < 8; ++i) r[i] = load32(from + i * from_stride);
    transpose8(r);
    for (size_t i = 0; i < 8; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_stride), r[i]);
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

}  // namespace selm::kernels::avx2

#endif
