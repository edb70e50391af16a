// The arithmetic, one table of functions per instruction set, chosen at run time.
// `scalar` is the truth; every other table is held to it by a property test.
//
// Bits: the value of one output depends on its row, its column and n alone, never on how many
// rows or columns share the call, nor on threads. So a prompt in pieces gives the same bits as
// one token at a time by `matmul`; the products for many columns are another arithmetic. No function
// allocates (they use up to 80 KB of stack), and none has state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/attention.h"
#include "quant/types.h"

namespace selm::kernels {

// neon, dotprod and i8mm (aarch64) give the same bits.
// amx is avx512 with other products for many columns.
enum class Isa : uint32_t { scalar = 0, avx2 = 1, avx512 = 2, amx = 3, neon = 8, dotprod = 9, i8mm = 10 };
// All of them; of two for the same architecture the better one comes later.
inline constexpr Isa kAllIsas[] = {Isa::scalar, Isa::avx2,    Isa::avx512, Isa::amx,
                                   Isa::neon,   Isa::dotprod, Isa::i8mm};

// How a weight type wants its activations; quantised once per product.
enum class ActFormat : uint32_t {
  f32,     // as they are (weights F32, F16, BF16)
  q8_32,   // blocks of 32 int8 with a float scale and the sum of the 32 (32-element weight blocks)
  q8_256,  // blocks of 256 int8 with a float scale and 16 sums of 16 (K-quants, IQ4_XS)
  u8_256,  // blocks of 256 (the last may be shorter) of uint8, zero being 128, with a float scale (matmul_u8)
  bf16     // rounded to bf16 (matmul_bf16)
};
inline constexpr size_t kActFormats = 5;
ActFormat act_format(quant::Type type);  // for `matmul`
// Bytes of one activation row of n elements, a multiple of 64 so that rows stay aligned.
size_t act_row_bytes(ActFormat format, size_t n);

struct Table {
  Isa isa;
  const char* name;  // "scalar", "avx2", "avx512", "amx", "neon", "dotprod", "i8mm"

  // One row of n floats (n a multiple of the format's block) to `out` (64-byte aligned). u8_256 and
  // bf16 only where there are products for them.
  void (*quantize_row)(ActFormat format, const float* x, size_t n, std::byte* out);

  // out[c * ldo + r] = sum_k W[r][k] * A[c][k], r < n_rows, c < n_cols.
  // weights: n_rows consecutive rows of `type` in the file's layout, n elements each.
  // acts: n_cols rows of act_format(type), act_row_bytes apart.
  void (*matmul)(quant::Type type, const std::byte* weights, size_t n_rows, size_t n, const std::byte* acts,
                 size_t n_cols, float* out, size_t ldo);

  // One row of an embedding table to floats (bit-exact with quant::dequantize_row).
  void (*dequantize_row)(quant::Type type, const std::byte* source, float* out, size_t n);

  // out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps); out may be x.
  void (*rms_norm)(const float* x, const float* weight, float* out, size_t n, float eps);
  void (*add)(float* x, const float* y, size_t n);                             // x += y
  void (*silu_mul)(const float* gate, const float* up, float* out, size_t n);  // silu(gate) * up

  // Rotate one head in place. cos_sin: n_rot/2 pairs (cos, sin). neox: pairs (i, i + n_rot/2);
  // otherwise adjacent pairs (2i, 2i + 1).
  void (*rope)(float* head, const float* cos_sin, size_t n_rot, bool neox);

  void (*to_f16)(const float* x, uint16_t* out, size_t n);
  void (*from_f16)(const uint16_t* x, float* out, size_t n);

  // The partials of up to kMaxQueries query rows over one chunk, partial_floats(d_v) apart. Query r
  // sees visible[r] of it. scratch: attention_scratch_floats(d_k, d_v).
  void (*attend)(const AttentionChunk& chunk, const float* const* queries, const Visible* visible,
                 size_t n_queries, float* scratch, float* partials);

  // out[r][i] += sum_p weights[r][p] * values[p][i], p < count in this order, i < width (a multiple of
  // kPadded); each array has the stride of its rows.
  void (*accumulate)(const float* weights, size_t weight_stride, size_t n_rows, const float* values,
                     size_t value_stride, size_t count, float* out, size_t out_stride, size_t width);
  // x[i] = e^(x[i] - shift), i < n (a multiple of kPadded); zero where that is below float's range.
  void (*exponentials)(float* x, size_t n, float shift);

  // As matmul, for many columns; nullptr where the instruction set has nothing faster.
  // Quantised types: weights become int8 with one scale for 256 elements, activations are u8_256.
  void (*matmul_u8)(quant::Type type, const std::byte* weights, size_t n_rows, size_t n,
                    const std::byte* acts, size_t n_cols, float* out, size_t ldo) = nullptr;
  // F32, F16 and BF16: weights and activations are rounded to bf16, sums are float.
  void (*matmul_bf16)(quant::Type type, const std::byte* weights, size_t n_rows, size_t n,
                      const std::byte* acts, size_t n_cols, float* out, size_t ldo) = nullptr;
};

// How to multiply: by `matmul`, or by what is faster for a batch of tokens. Up to 16 tokens at once give
// the bits of single ones, so a batch begins at 17; a file that is kept in F32 is kept for its precision.
struct Method {
  ActFormat format;
  decltype(Table::matmul) matmul;
};
inline constexpr size_t kBatchColumns = 17;
Method method(const Table& table, quant::Type type, bool batched);

// The table of an instruction set, or nullptr where this processor (or this build) lacks it.
const Table* table(Isa isa);
// The best one here (never amx, which has been tested by emulation only).
const Table* best();
// By its name; nullptr if unknown or not available.
const Table* by_name(std::string_view name);

}  // namespace selm::kernels
