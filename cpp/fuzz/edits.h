// A good file whose directory (all before the tensors' data) a fuzzer changes, written where it can be
// opened.
//
// The input is a list of edits of 4 bytes: where (16 bits), how (set, add, exclusive or), with what.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "../tests/gguf_builder.h"

class EditedFile {
 public:
  explicit EditedFile(selm::test::GgufBuilder builder) : good_(builder.build()), directory_(good_.size()) {
    for (const auto& tensor : builder.tensors()) directory_ -= (tensor.data.size() + 31) / 32 * 32;
    char name[] = "/tmp/selm-fuzz-XXXXXX";
    const int fd = mkstemp(name);
    if (fd >= 0) close(fd);
    path_ = name;
  }
  ~EditedFile() { std::remove(path_.c_str()); }
  EditedFile(const EditedFile&) = delete;
  EditedFile& operator=(const EditedFile&) = delete;

  // The path of the file with these edits.
  const char* write(const uint8_t* data, size_t size) const {
    std::vector<std::byte> bytes = good_;
    for (size_t i = 0; i + 4 <= size; i += 4) {
      std::byte& byte = bytes[(data[i] + 256u * data[i + 1]) % directory_];
      const auto old = static_cast<uint8_t>(byte);
      const uint8_t changed[] = {data[i + 3], static_cast<uint8_t>(old + data[i + 3]),
                                 static_cast<uint8_t>(old ^ data[i + 3])};
      byte = static_cast<std::byte>(changed[data[i + 2] % 3]);
    }
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path_.c_str();
  }

 private:
  std::vector<std::byte> good_;
  size_t directory_;
  std::string path_;
};
