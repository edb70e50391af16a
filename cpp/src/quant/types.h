// The block types of GGUF tensors: ids, sizes, names. Layouts: ggml/src/ggml-common.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace selm::quant {

// Ids as stored in the file.
enum class Type : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30,
};

inline constexpr uint32_t kTypeLimit = 43;  // one past the largest id that GGUF knows

struct TypeInfo {
  const char* name;      // as gguf-py and llama.cpp print it: "F32", "Q4_K", ...
  uint32_t block_size;   // elements in a block
  uint32_t block_bytes;  // bytes of a block
};

// What GGUF knows about an id, read by this core or not: for sizes and messages.
enum class Support : uint8_t {
  unknown,       // no such id: name is nullptr
  removed,       // was once given out, refused by every reader
  runtime_only,  // activations inside ggml; never in a file
  other,         // valid in a file, not read here; block_size 0 where the layout is not settled
  read,
};
struct KnownType {
  TypeInfo info;
  Support support;
};
KnownType known_type(uint32_t id);

// nullptr for an id that this core does not read.
const TypeInfo* type_info(uint32_t id);
inline const TypeInfo& info(Type type) { return *type_info(static_cast<uint32_t>(type)); }

// Bytes of a row of n elements; n must be a multiple of the block size.
inline size_t row_bytes(Type type, size_t n) {
  const TypeInfo& t = info(type);
  return n / t.block_size * t.block_bytes;
}

}  // namespace selm::quant
