// F32, F16 and BF16 as 16 floats (or the first of them, by a mask), for the AVX-512 and AMX files.
#pragma once

#if defined(__x86_64__)

#include "kernels/avx512.h"

namespace selm::kernels::avx512 {
namespace {

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m512 load(const std::byte* p) { return _mm512_loadu_ps(p); }
  static __m512 load(const std::byte* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static __m512 load(const std::byte* p) { return _mm512_cvtph_ps(load32(p)); }
  static __m512 load(const std::byte* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
};
struct Bf16 {
  static constexpr size_t kBytes = 2;
  static __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static __m512 load(const std::byte* p) { return widen(load32(p)); }
  static __m512 load(const std::byte* p, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, p)); }
};

}  // namespace
}  // namespace selm::kernels::avx512

#endif
