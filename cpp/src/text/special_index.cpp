#include "text/special_index.h"

#include <algorithm>

namespace selm::text {

SpecialIndex::SpecialIndex(const Vocabulary& vocabulary, bool control) {
  for (Token id = 0; vocabulary.has(id); ++id) {
    const TokenType type = vocabulary.type(id);
    const bool wanted = type == TokenType::user_defined ||
                        (control && (type == TokenType::control || type == TokenType::unknown));
    if (wanted && !vocabulary.text(id).empty()) sorted_.push_back(id);
  }
  // char_traits<char> compares as unsigned char; equal texts keep the order of their ids.
  std::stable_sort(sorted_.begin(), sorted_.end(),
                   [&](Token a, Token b) { return vocabulary.text(a) < vocabulary.text(b); });
  size_t i = 0;
  for (unsigned byte = 0; byte < 257; ++byte) {
    while (i < sorted_.size() && static_cast<uint8_t>(vocabulary.text(sorted_[i])[0]) < byte) ++i;
    first_[byte] = static_cast<uint32_t>(i);
  }
}

// Narrows the sorted texts, byte by byte, to those that begin as the text does.
SpecialIndex::Match SpecialIndex::match_at(const Vocabulary& vocabulary, std::string_view text,
                                           size_t at) const {
  const auto lead = static_cast<uint8_t>(text[at]);
  const Token* low = sorted_.data() + first_[lead];
  const Token* high = sorted_.data() + first_[lead + 1u];
  Match found = {text.size(), text.size(), kNoToken};
  for (size_t depth = 1; low != high; ++depth) {
    if (vocabulary.text(*low).size() == depth) {  // a whole one: the shortest sorts first
      found = {at, at + depth, *low};
      while (low != high && vocabulary.text(*low).size() == depth) ++low;
    }
    if (at + depth >= text.size()) break;
    const auto byte = static_cast<uint8_t>(text[at + depth]);
    const auto byte_of = [&](Token id) { return static_cast<uint8_t>(vocabulary.text(id)[depth]); };
    low = std::partition_point(low, high, [&](Token id) { return byte_of(id) < byte; });
    high = std::partition_point(low, high, [&](Token id) { return byte_of(id) == byte; });
  }
  return found;
}

SpecialIndex::Match SpecialIndex::next(const Vocabulary& vocabulary, std::string_view text,
                                       size_t from) const {
  if (!sorted_.empty()) {
    for (size_t at = from; at < text.size(); ++at) {
      const auto lead = static_cast<uint8_t>(text[at]);
      if (first_[lead] == first_[lead + 1u]) continue;
      const Match found = match_at(vocabulary, text, at);
      if (found.id != kNoToken) return found;
    }
  }
  return {text.size(), text.size(), kNoToken};
}

}  // namespace selm::text
