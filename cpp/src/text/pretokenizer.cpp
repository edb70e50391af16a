#include "text/pretokenizer.h"

namespace selm::text {
namespace {

std::vector<Char> read_chars(std::string_view text) {
  std::vector<Char> chars;
  chars.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char next = read_utf8(text, offset);
    const size_t length = next.valid ? next.length : 1;
    chars.push_back({next.code, class_of(next.code), static_cast<uint32_t>(offset)});
    offset += length;
  }
  return chars;
}

// Cuts one piece: every match is a piece of its own, and so is what lies between two matches.
void split_piece(Matcher match, const Piece& piece, size_t base, std::vector<size_t>& ends) {
  size_t cut = 0;
  for (size_t at = 0; at < piece.size();) {
    const size_t end = match(piece, at);
    if (end == at) {
      ++at;
      continue;
    }
    if (cut < at) ends.push_back(base + at);
    ends.push_back(base + end);
    cut = at = end;
  }
  if (cut < piece.size()) ends.push_back(base + piece.size());
}

}  // namespace

std::vector<uint32_t> split_words(const PreTokenizer& rules, std::string_view text) {
  const std::vector<Char> chars = read_chars(text);
  std::vector<size_t> ends, next;
  if (!chars.empty()) ends.push_back(chars.size());
  for (const Matcher match : rules.stages) {
    if (match == nullptr) break;
    next.clear();
    size_t begin = 0;
    for (const size_t end : ends) {
      split_piece(match, Piece(std::span(chars).subspan(begin, end - begin)), begin, next);
      begin = end;
    }
    ends.swap(next);
  }
  std::vector<uint32_t> bytes;
  bytes.reserve(ends.size());
  for (const size_t end : ends) {
    bytes.push_back(end < chars.size() ? chars[end].offset : static_cast<uint32_t>(text.size()));
  }
  return bytes;
}

}  // namespace selm::text
