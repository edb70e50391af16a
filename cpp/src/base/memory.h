// Memory without exceptions, and arithmetic that says when it would overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <utility>

namespace selm {

// The product or sum, or false where it does not fit; *out is then undefined.
template <class T>
[[nodiscard]] constexpr bool checked_mul(T a, T b, T* out) {
  return !__builtin_mul_overflow(a, b, out);
}
template <class T>
[[nodiscard]] constexpr bool checked_add(T a, T b, T* out) {
  return !__builtin_add_overflow(a, b, out);
}
// n rounded up to a multiple of `alignment` (a power of two).
template <class T>
[[nodiscard]] constexpr bool checked_align(T n, T alignment, T* out) {
  if (!checked_add<T>(n, alignment - 1, &n)) return false;
  *out = n & ~(alignment - 1);
  return true;
}

// Bytes at a 64-byte boundary (a cache line, an AVX-512 register), not initialised. The size is
// rounded up to whole lines, so a vector load of the last element stays inside.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    if (this != &other) {
      std::free(data_);
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~AlignedBuffer() { std::free(data_); }

  // Nothing when the system has no such memory. Zero bytes give a valid, empty buffer.
  [[nodiscard]] static std::optional<AlignedBuffer> make(uint64_t wanted) {
    AlignedBuffer buffer;
    const auto bytes = static_cast<size_t>(wanted);
    size_t rounded = 0;
    if (bytes != wanted || !checked_align(bytes, kAlignment, &rounded)) return std::nullopt;
    if (rounded > 0) {
      buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
      if (buffer.data_ == nullptr) return std::nullopt;
    }
    buffer.size_ = bytes;
    return buffer;
  }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() {
    static_assert(alignof(T) <= kAlignment);
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    static_assert(alignof(T) <= kAlignment);
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace selm
