// What the package's benchmarks and tests ask of the core; not part of the library that others link.
#pragma once

#include "selm/selm.h"

extern "C" {

/* Read bandwidth of this machine in GB/s with that many threads (0: all), about half a second. */
selm_status selm_measure_bandwidth(uint32_t threads, double* gb_per_second);
/* Dequantises n elements of a GGUF block type (by id), as the core reads it. */
selm_status selm_dequantize(uint32_t type, const void* data, size_t size, float* out, size_t n);
/* out[c, r] = W[r, k] A[c, k] as a session multiplies that many columns (without `exact`), on an
 * instruction set by name (NULL: best). */
selm_status selm_matmul(const char* isa, uint32_t type, const void* weights, size_t size, size_t rows,
                        size_t n, const float* activations, size_t columns, float* out);

}  // extern "C"
