// From the bytes of a file to its checked directory. Used by gguf.cpp only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "gguf/gguf.h"

namespace selm::gguf {

// Every how many strings of an array the directory keeps a mark: a string holds 8 bytes or more,
// so the marks take at most an eighth of the array, and finding one takes at most 7 steps.
inline constexpr uint64_t kMarkStep = 8;

struct Directory {
  uint32_t version = 0;
  std::vector<Entry> entries;
  std::vector<Tensor> tensors;
  std::vector<uint32_t> by_key;   // entries sorted by key
  std::vector<uint32_t> by_name;  // tensors sorted by name
  std::vector<std::unique_ptr<uint64_t[]>> marks;
};

Result<Directory> parse_directory(std::span<const std::byte> bytes);

const char* value_type_name(ValueType type);
size_t value_type_bytes(ValueType type);  // of one element; 0 for strings and arrays

}  // namespace selm::gguf
