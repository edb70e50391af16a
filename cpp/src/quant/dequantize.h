// The scalar truth of every block type: bytes of a file to float32, bit for bit what the `gguf`
// package gives.
#pragma once

#include <cstddef>

#include "quant/types.h"

namespace selm::quant {

// n elements (a multiple of the block size) from `source` (any alignment) to `out`.
void dequantize_row(Type type, const std::byte* source, float* out, size_t n);

// True when every scale of the row is finite.
bool row_is_finite(Type type, const std::byte* source, size_t n);

}  // namespace selm::quant
