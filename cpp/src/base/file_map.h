// A whole regular file, mapped for reading.
//
// What it does not guard against: another program that shortens the file while it is mapped. The
// pages past the new end then raise SIGBUS on the next touch, as in any program that maps files,
// and a library must not take over its host's signal handlers. Replace model files by rename
// (the old contents stay mapped), never in place.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/status.h"

namespace selm {

class FileMap {
 public:
  FileMap() = default;
  FileMap(FileMap&& other) noexcept;
  FileMap& operator=(FileMap&& other) noexcept;
  ~FileMap();

  // Code::io when the file cannot be opened or mapped or is no regular file (a directory, a pipe;
  // it never waits for a writer). Needs read permission only. An empty file gives empty bytes.
  static Result<FileMap> open(const std::string& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }  // at a page boundary

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace selm
