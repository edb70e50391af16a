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

// Where memory comes from: the system, or who embeds us.
struct Allocator {
  // Nothing where there is none. Aligned to `alignment`, a power of two.
  void* (*allocate)(void* user, size_t size, size_t alignment) = [](void*, size_t size, size_t alignment) {
    return std::aligned_alloc(alignment, size);
  };
  void (*release)(void* user, void* memory, size_t size) = [](void*, void* memory, size_t) {
    std::free(memory);
  };
  void* user = nullptr;
};

// Bytes at a 64-byte boundary (a cache line, an AVX-512 register), not initialised. The size is
// rounded up to whole lines, so a vector load of the last element stays inside.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        from_(other.from_) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    if (this != &other) {
      release();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
      from_ = other.from_;
    }
    return *this;
  }
  ~AlignedBuffer() { release(); }

  // Nothing when there is no such memory. Zero bytes give a valid, empty buffer.
  [[nodiscard]] static std::optional<AlignedBuffer> make(uint64_t wanted, const Allocator& from = {}) {
    AlignedBuffer buffer;
    const auto bytes = static_cast<size_t>(wanted);
    size_t rounded = 0;
    if (bytes != wanted || !checked_align(bytes, kAlignment, &rounded)) return std::nullopt;
    if (rounded > 0) {
      buffer.data_ = static_cast<std::byte*>(from.allocate(from.user, rounded, kAlignment));
      if (buffer.data_ == nullptr) return std::nullopt;
      buffer.from_ = from;
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
  void release() {  // as much as was asked for
    if (data_ != nullptr) from_.release(from_.user, data_, (size_ + kAlignment - 1) & ~(kAlignment - 1));
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  Allocator from_;
};

}  // namespace selm
