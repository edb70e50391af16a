#include "gguf/cursor.h"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>

namespace selm::gguf {

Status at_byte(Code code, uint64_t offset, const char* format, ...) {
  char cause[448];
  va_list args;
  va_start(args, format);
  std::vsnprintf(cause, sizeof cause, format, args);
  va_end(args);
  return error(code, "at byte %" PRIu64 ": %s", offset, cause);
}

std::string printable(std::string_view text) {
  constexpr size_t kShown = 64;
  std::string out;
  for (const char c : text.substr(0, kShown)) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      out += escaped;
    }
  }
  if (text.size() > kShown) out += "...";
  return out;
}

Status Cursor::read_string(uint64_t limit, const char* what, std::string_view* out) {
  const uint64_t start = at_;
  uint64_t length = 0;
  SELM_TRY(read(&length, what));
  if (length > limit) {
    return at_byte(Code::format, start, "%s has %" PRIu64 " bytes; the limit is %" PRIu64, what, length,
                   limit);
  }
  const std::byte* text = here();
  SELM_TRY(skip(length, what));
  *out = {reinterpret_cast<const char*>(text), static_cast<size_t>(length)};
  return {};
}

Status Cursor::ends_inside(const char* what, uint64_t wanted) const {
  return at_byte(Code::format, at_, "the file ends inside %s (%" PRIu64 " bytes wanted, %" PRIu64 " left)",
                 what, wanted, left());
}

}  // namespace selm::gguf
