// Reading a GGUF file, versions 2 and 3. Layout: ggml docs/gguf.md and ggml/include/gguf.h.
// Everything is checked before it is used: a File that exists is consistent, its tensors lie
// inside the file. Nothing is copied but the directory; strings and tensors point into the map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_bytes.h"
#include "base/status.h"
#include "quant/types.h"

namespace selm::gguf {

enum class ValueType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

constexpr bool is_integer(ValueType type) {
  using V = ValueType;
  return type != V::f32 && type != V::f64 && type != V::boolean && type != V::string && type != V::array;
}

// One metadata pair. For an array, `type` is the element type and `is_array` is set; numbers are
// little-endian at `data` (unaligned), `count` of them. Strings (single or in an array) are read
// through File::string.
struct Entry {
  std::string_view key;
  ValueType type;
  bool is_array;
  uint64_t count;                   // 1 for a single value
  const std::byte* data;            // first element (of a string: its 8-byte length)
  uint64_t offset;                  // of `data` in the file, for messages
  const uint64_t* marks = nullptr;  // array of strings: file offset of every 8th one
};

struct Tensor {
  std::string_view name;
  uint32_t n_dims;
  uint64_t ne[4];  // ne[0] is contiguous; unused dims are 1
  quant::Type type;
  const std::byte* data;
  uint64_t size;    // bytes
  uint64_t offset;  // of `data` in the file
};

class File {
 public:
  // Maps and validates. Errors: io, format, unsupported; messages carry "at byte N".
  static Result<File> open(const std::string& path);
  static Result<File> open(FileBytes bytes);
  // The same for bytes in memory, which begin at an 8-byte boundary and outlive the File.
  static Result<File> parse(std::span<const std::byte> bytes);

  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  uint32_t version() const;
  uint64_t size() const;  // bytes of the whole file
  std::span<const Entry> entries() const;
  std::span<const Tensor> tensors() const;

  const Entry* find(std::string_view key) const;           // nullptr if absent
  const Tensor* find_tensor(std::string_view name) const;  // nullptr if absent

  // Typed reads. The optional ones give nullopt when the key is absent and an error when it has
  // another type or does not fit (integers of any width convert when the value fits).
  Result<std::optional<uint64_t>> get_uint(std::string_view key) const;
  Result<std::optional<int64_t>> get_int(std::string_view key) const;
  Result<std::optional<double>> get_float(std::string_view key) const;
  Result<std::optional<bool>> get_bool(std::string_view key) const;
  Result<std::optional<std::string_view>> get_string(std::string_view key) const;

  // Element `index` of an entry whose type fits (index < count; string needs ValueType::string).
  std::string_view string(const Entry& entry, uint64_t index) const;
  uint64_t uint_at(const Entry& entry, uint64_t index) const;
  int64_t int_at(const Entry& entry, uint64_t index) const;
  double float_at(const Entry& entry, uint64_t index) const;

 private:
  struct Impl;
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace selm::gguf
