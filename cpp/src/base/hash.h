// XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md): finds damage and tells files apart, at the
// speed of memory. No defence against someone who makes a collision on purpose.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace selm {

uint64_t hash64(std::span<const std::byte> bytes, uint64_t seed = 0);

}  // namespace selm
