#include "base/file_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>

namespace selm {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Status refused(const char* action, int cause) {
  return error(Code::io, "cannot %s: %s", action, std::generic_category().message(cause).c_str());
}

}  // namespace

FileMap::FileMap(FileMap&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

FileMap& FileMap::operator=(FileMap&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

FileMap::~FileMap() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Result<FileMap> FileMap::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) return error(Code::io, "cannot open: a path holds no NUL");
  int fd = -1;
  do {  // O_NONBLOCK: a named pipe opens at once, to be refused below
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return refused("open", errno);
  const Descriptor file(fd);

  struct stat about = {};
  if (::fstat(file.get(), &about) != 0) return refused("look at", errno);
  if (S_ISDIR(about.st_mode)) return error(Code::io, "cannot read: it is a directory");
  if (!S_ISREG(about.st_mode)) return error(Code::io, "cannot read: not a regular file");
  FileMap map;
  if (about.st_size == 0) return map;
  if (static_cast<uint64_t>(about.st_size) > SIZE_MAX / 2) return refused("map", EFBIG);

  const size_t size = static_cast<size_t>(about.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) return refused("map", errno);
  map.data_ = static_cast<const std::byte*>(data);
  map.size_ = size;
  return map;
}

}  // namespace selm
