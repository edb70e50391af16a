// How fast this machine reads memory: the bound of decoding.
#pragma once

#include "base/status.h"

namespace selm::api {

// GB/s (1e9 bytes) of `threads` threads reading a buffer larger than the caches; the best of
// several passes. Error: out_of_memory.
Result<double> measure_bandwidth(unsigned threads);

}  // namespace selm::api
