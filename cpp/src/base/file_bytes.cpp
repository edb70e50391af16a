#include "base/file_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
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

constexpr size_t kPiece = size_t{16} << 20;  // read at once

Status refused(const char* action, int cause) {
  return error(Code::io, "cannot %s: %s", action, std::generic_category().message(cause).c_str());
}

Result<size_t> size_of(int descriptor) {
  struct stat about = {};
  if (::fstat(descriptor, &about) != 0) return refused("look at", errno);
  if (S_ISDIR(about.st_mode)) return error(Code::io, "cannot read: it is a directory");
  if (!S_ISREG(about.st_mode)) return error(Code::io, "cannot read: not a regular file");
  if (static_cast<uint64_t>(about.st_size) > SIZE_MAX / 2) return refused("map", EFBIG);
  return static_cast<size_t>(about.st_size);
}

}  // namespace

FileBytes::FileBytes(FileBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), own_(other.own_) {}

FileBytes& FileBytes::operator=(FileBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(own_, other.own_);
  return *this;
}

FileBytes::~FileBytes() {
  if (own_ && data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

FileBytes FileBytes::borrowed(std::span<const std::byte> bytes) {
  FileBytes found;
  found.data_ = bytes.data();
  found.size_ = bytes.size();
  found.own_ = false;
  return found;
}

Result<FileBytes> FileBytes::open(const std::string& path, How how) {
  if (path.find('\0') != std::string::npos) return error(Code::io, "cannot open: a path holds no NUL");
  int descriptor = -1;
  do {  // O_NONBLOCK: a named pipe opens at once, to be refused below
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) return refused("open", errno);
  const Descriptor file(descriptor);
  return open(file.get(), how);
}

Result<FileBytes> FileBytes::open(int descriptor, How how) {
  SELM_ASSIGN(const size_t size, size_of(descriptor));
  if (size == 0) return FileBytes();
  if (how == How::map) return map(descriptor, size);
  return read(size, [descriptor](uint64_t offset, std::byte* buffer, size_t wanted) {
    ssize_t given = 0;
    do {
      given = ::pread(descriptor, buffer, wanted, static_cast<off_t>(offset));
    } while (given < 0 && errno == EINTR);
    return given < 0 ? 0 : static_cast<size_t>(given);
  });
}

Result<FileBytes> FileBytes::map(int descriptor, size_t size) {
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) return refused("map", errno);
  FileBytes found;
  found.data_ = static_cast<const std::byte*>(data);
  found.size_ = size;
  return found;
}

Result<FileBytes> FileBytes::read(uint64_t size, const Reader& read) {
  if (size == 0) return FileBytes();
  const auto whole = static_cast<size_t>(size);
  if (size > SIZE_MAX / 2)
    return error(Code::out_of_memory, "no room for a copy of %llu bytes",
                 static_cast<unsigned long long>(size));
  void* data = ::mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return error(Code::out_of_memory, "no room for a copy of %zu bytes", whole);
  FileBytes found;
  found.data_ = static_cast<const std::byte*>(data);
  found.size_ = whole;
  for (size_t at = 0; at < whole;) {
    const size_t wanted = std::min(kPiece, whole - at);
    const size_t given = read(at, static_cast<std::byte*>(data) + at, wanted);
    if (given == 0 || given > wanted)
      return error(Code::io, "cannot read: it ends at byte %zu of %zu, or a read failed", at, whole);
    at += given;
  }
  return found;
}

}  // namespace selm
