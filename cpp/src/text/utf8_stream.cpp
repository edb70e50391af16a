#include "text/tokenizer.h"
#include "text/unicode.h"

namespace selm::text {

// At most three bytes are ever held: the beginning of a sequence whose rest has not come.
std::string Utf8Stream::push(std::string_view bytes) {
  held_.append(bytes);
  std::string out;
  out.reserve(held_.size());
  size_t offset = 0;
  while (offset < held_.size()) {
    const Utf8Char next = read_utf8(held_, offset);
    if (next.incomplete) break;
    if (next.valid) {
      out.append(held_, offset, next.length);
    } else {
      append_utf8(kReplacement, out);
    }
    offset += next.length;
  }
  held_.erase(0, offset);
  return out;
}

std::string Utf8Stream::flush() {
  std::string out;
  if (!held_.empty()) append_utf8(kReplacement, out);
  held_.clear();
  return out;
}

}  // namespace selm::text
