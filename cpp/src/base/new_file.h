// A file that is written whole or not at all: bytes go to another one beside it, which takes the name
// once the disk has all of them. Whatever happens before, a file of that name stays as it was.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/status.h"

namespace selm {

class NewFile {
 public:
  NewFile(NewFile&& other) noexcept;
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();  // without commit(): nothing is left

  // Code::io, here and below: no such folder, no permission, a full disk. Only its owner may read it.
  static Result<NewFile> create(const std::string& path);
  Status write(std::span<const std::byte> bytes);
  Status commit();

 private:
  NewFile() = default;

  std::string path_, unfinished_;  // unfinished_ is empty where there is nothing to remove
  int fd_ = -1;
};

}  // namespace selm
