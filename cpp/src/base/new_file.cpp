#include "base/new_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

namespace selm {
namespace {

Status refused(const char* action, int cause) {
  return error(Code::io, "cannot %s: %s", action, std::generic_category().message(cause).c_str());
}

}  // namespace

NewFile::NewFile(NewFile&& other) noexcept
    : path_(std::move(other.path_)),
      unfinished_(std::exchange(other.unfinished_, {})),
      fd_(std::exchange(other.fd_, -1)) {}

NewFile::~NewFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!unfinished_.empty()) ::unlink(unfinished_.c_str());
}

Result<NewFile> NewFile::create(const std::string& path) {
  if (path.find('\0') != std::string::npos) return error(Code::io, "cannot write: a path holds no NUL");
  NewFile file;
  file.path_ = path;
  std::string name = path + ".XXXXXX";
  file.fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (file.fd_ < 0) return refused("write", errno);
  file.unfinished_ = std::move(name);
  return file;
}

Status NewFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return refused("write", errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

Status NewFile::commit() {
  if (::fsync(fd_) != 0) return refused("write", errno);
  if (::close(std::exchange(fd_, -1)) != 0) return refused("write", errno);
  if (std::rename(unfinished_.c_str(), path_.c_str()) != 0) return refused("replace", errno);
  unfinished_.clear();
  // So that the name too survives a loss of power; not every file system can, and the file is there.
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    (void)::fsync(fd);
    ::close(fd);
  }
  return {};
}

}  // namespace selm
