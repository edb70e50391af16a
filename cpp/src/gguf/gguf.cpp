// The open file: lookups and typed reads. The parsing itself is in parser.cpp.
#include "gguf/gguf.h"

#include <algorithm>
#include <cinttypes>
#include <limits>

#include "base/file_bytes.h"
#include "gguf/cursor.h"
#include "gguf/parser.h"

namespace selm::gguf {

struct File::Impl {
  FileBytes own;  // empty where the bytes belong to whoever called parse
  std::span<const std::byte> bytes;
  Directory directory;
};

File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

Result<File> File::parse(std::span<const std::byte> bytes) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % 8 != 0) {
    return error(Code::invalid_argument, "a GGUF file in memory begins at an 8-byte boundary");
  }
  auto impl = std::make_unique<Impl>();
  impl->bytes = bytes;
  SELM_ASSIGN(impl->directory, parse_directory(bytes));
  return File(std::move(impl));
}

Result<File> File::open(const std::string& path) {
  SELM_ASSIGN(FileBytes bytes, FileBytes::open(path));
  return open(std::move(bytes));
}

Result<File> File::open(FileBytes bytes) {
  SELM_ASSIGN(File file, parse(bytes.bytes()));
  file.impl_->own = std::move(bytes);
  return file;
}

uint32_t File::version() const { return impl_->directory.version; }
uint64_t File::size() const { return impl_->bytes.size(); }
std::span<const Entry> File::entries() const { return impl_->directory.entries; }
std::span<const Tensor> File::tensors() const { return impl_->directory.tensors; }

const Entry* File::find(std::string_view key) const {
  const Directory& d = impl_->directory;
  const auto it = std::lower_bound(d.by_key.begin(), d.by_key.end(), key,
                                   [&](uint32_t i, std::string_view k) { return d.entries[i].key < k; });
  return it != d.by_key.end() && d.entries[*it].key == key ? &d.entries[*it] : nullptr;
}

const Tensor* File::find_tensor(std::string_view name) const {
  const Directory& d = impl_->directory;
  const auto it = std::lower_bound(d.by_name.begin(), d.by_name.end(), name,
                                   [&](uint32_t i, std::string_view n) { return d.tensors[i].name < n; });
  return it != d.by_name.end() && d.tensors[*it].name == name ? &d.tensors[*it] : nullptr;
}

namespace {

bool is_signed(ValueType t) {
  return t == ValueType::i8 || t == ValueType::i16 || t == ValueType::i32 || t == ValueType::i64;
}
bool is_float(ValueType t) { return t == ValueType::f32 || t == ValueType::f64; }

Status wrong_type(const Entry& e, const char* wanted) {
  return at_byte(Code::format, e.offset, "key '%s' holds %s%s, not %s", printable(e.key).c_str(),
                 e.is_array ? "an array of " : "", value_type_name(e.type), wanted);
}

// Any number, sign-extended to 64 bits (an unsigned 64-bit one keeps its bits).
int64_t integer_bits(ValueType type, const std::byte* p) {
  switch (type) {
    case ValueType::u8:
      return load<uint8_t>(p);
    case ValueType::i8:
      return load<int8_t>(p);
    case ValueType::u16:
      return load<uint16_t>(p);
    case ValueType::i16:
      return load<int16_t>(p);
    case ValueType::u32:
      return load<uint32_t>(p);
    case ValueType::i32:
      return load<int32_t>(p);
    case ValueType::boolean:
      return load<uint8_t>(p) != 0;
    case ValueType::u64:
      return static_cast<int64_t>(load<uint64_t>(p));
    case ValueType::i64:
      return load<int64_t>(p);
    default:
      return 0;
  }
}

}  // namespace

Result<std::optional<uint64_t>> File::get_uint(std::string_view key) const {
  const Entry* e = find(key);
  if (e == nullptr) return std::optional<uint64_t>();
  if (e->is_array || !is_integer(e->type)) return wrong_type(*e, "a whole number");
  const int64_t bits = integer_bits(e->type, e->data);
  if (is_signed(e->type) && bits < 0) {
    return at_byte(Code::format, e->offset, "key '%s' is negative: %" PRId64, printable(key).c_str(), bits);
  }
  return std::optional<uint64_t>(static_cast<uint64_t>(bits));
}

Result<std::optional<int64_t>> File::get_int(std::string_view key) const {
  const Entry* e = find(key);
  if (e == nullptr) return std::optional<int64_t>();
  if (e->is_array || !is_integer(e->type)) return wrong_type(*e, "a whole number");
  const int64_t bits = integer_bits(e->type, e->data);
  if (e->type == ValueType::u64 && bits < 0) {
    return at_byte(Code::format, e->offset, "key '%s' is too large: %" PRIu64, printable(key).c_str(),
                   static_cast<uint64_t>(bits));
  }
  return std::optional<int64_t>(bits);
}

Result<std::optional<double>> File::get_float(std::string_view key) const {
  const Entry* e = find(key);
  if (e == nullptr) return std::optional<double>();
  if (e->is_array || !is_float(e->type)) return wrong_type(*e, "a floating-point number");
  return std::optional<double>(float_at(*e, 0));
}

Result<std::optional<bool>> File::get_bool(std::string_view key) const {
  const Entry* e = find(key);
  if (e == nullptr) return std::optional<bool>();
  if (e->is_array || e->type != ValueType::boolean) return wrong_type(*e, "a bool");
  return std::optional<bool>(load<uint8_t>(e->data) != 0);
}

Result<std::optional<std::string_view>> File::get_string(std::string_view key) const {
  const Entry* e = find(key);
  if (e == nullptr) return std::optional<std::string_view>();
  if (e->is_array || e->type != ValueType::string) return wrong_type(*e, "a string");
  return std::optional<std::string_view>(string(*e, 0));
}

std::string_view File::string(const Entry& entry, uint64_t index) const {
  if (entry.type != ValueType::string || index >= entry.count) return {};
  uint64_t at = entry.marks != nullptr ? entry.marks[index / kMarkStep] : entry.offset;
  // Lengths were checked when the file was opened. They are checked again because the map shows
  // what another process may since have written.
  for (uint64_t hops = index % kMarkStep;; --hops) {
    if (size() - at < 8) return {};
    const uint64_t length = load<uint64_t>(impl_->bytes.data() + at);
    at += 8;
    if (length > size() - at) return {};
    if (hops == 0) {
      return {reinterpret_cast<const char*>(impl_->bytes.data() + at), static_cast<size_t>(length)};
    }
    at += length;
  }
}

uint64_t File::uint_at(const Entry& entry, uint64_t index) const {
  return static_cast<uint64_t>(int_at(entry, index));
}

int64_t File::int_at(const Entry& entry, uint64_t index) const {
  if (index >= entry.count) return 0;
  return integer_bits(entry.type, entry.data + index * value_type_bytes(entry.type));
}

double File::float_at(const Entry& entry, uint64_t index) const {
  if (index >= entry.count) return 0;
  const std::byte* p = entry.data + index * value_type_bytes(entry.type);
  switch (entry.type) {
    case ValueType::f32:
      return load<float>(p);
    case ValueType::f64:
      return load<double>(p);
    case ValueType::u64:
      return static_cast<double>(load<uint64_t>(p));
    default:
      return static_cast<double>(integer_bits(entry.type, p));
  }
}

}  // namespace selm::gguf
