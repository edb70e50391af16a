// The bytes of a whole file: mapped, copied into memory, or the caller's own.
//
// What mapping does not guard against: another program that shortens the file while it is mapped. The
// pages past the new end then raise SIGBUS on the next touch, as in any program that maps files,
// and a library must not take over its host's signal handlers. Replace model files by rename
// (the old contents stay mapped), never in place; or copy: then a file that ends too soon is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/status.h"

namespace selm {

class FileBytes {
 public:
  enum class How { map, copy };

  FileBytes() = default;
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&& other) noexcept;
  ~FileBytes();

  // Code::io when the file cannot be opened, read or mapped or is no regular file (a directory, a pipe;
  // it never waits for a writer). Needs read permission only. An empty file gives empty bytes.
  // out_of_memory: no room for a copy.
  static Result<FileBytes> open(const std::string& path, How how = How::map);
  // Of a descriptor that stays the caller's and may be closed afterwards; its position is not used.
  static Result<FileBytes> open(int descriptor, How how = How::map);
  // `size` bytes, in pieces: read(offset, buffer, wanted) returns how many it gave, 0 for a failure.
  using Reader = std::function<size_t(uint64_t, std::byte*, size_t)>;
  static Result<FileBytes> read(uint64_t size, const Reader& read);
  // Bytes that outlive this.
  static FileBytes borrowed(std::span<const std::byte> bytes);

  std::span<const std::byte> bytes() const { return {data_, size_}; }  // unless borrowed, at a page boundary

 private:
  static Result<FileBytes> map(int descriptor, size_t size);

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool own_ = true;
};

}  // namespace selm
