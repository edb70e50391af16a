// Reading forward through bytes that nobody vouches for.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace selm::gguf {

static_assert(std::endian::native == std::endian::little, "GGUF numbers are read as they lie");

// A number at any address.
template <class T>
T load(const std::byte* source) {
  T value;
  std::memcpy(&value, source, sizeof value);
  return value;
}

// "at byte N: cause": the one form of every message about a file's contents.
[[gnu::format(printf, 3, 4)]] Status at_byte(Code code, uint64_t offset, const char* format, ...);

// Text of the file made fit for a message: printable ASCII, the rest escaped, cut after 64 bytes.
std::string printable(std::string_view text);

class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t offset() const { return at_; }
  uint64_t left() const { return bytes_.size() - at_; }
  const std::byte* here() const { return bytes_.data() + at_; }

  // `what` completes "the file ends inside ...".
  Status skip(uint64_t n, const char* what) {
    if (n > left()) return ends_inside(what, n);
    at_ += static_cast<size_t>(n);
    return {};
  }
  template <class T>
  Status read(T* out, const char* what) {
    if (sizeof(T) > left()) return ends_inside(what, sizeof(T));
    *out = load<T>(here());
    at_ += sizeof(T);
    return {};
  }
  // A 64-bit length and that many bytes, at most `limit`.
  Status read_string(uint64_t limit, const char* what, std::string_view* out);

 private:
  Status ends_inside(const char* what, uint64_t wanted) const;

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

}  // namespace selm::gguf
