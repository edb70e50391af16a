#include "text/unicode.h"

#include <algorithm>

namespace selm::text {

CharClass class_of(uint32_t code) {
  // The range with the greatest first code point <= code; the table begins with U+0000.
  const uint32_t key = code << 4 | 0xF;
  const uint32_t* next = std::upper_bound(kClassRanges, kClassRanges + kClassRangeCount, key);
  const uint32_t range = next[-1];
  const auto found = static_cast<CharClass>(range & 0xF);
  if (found != CharClass::cased_pairs) return found;
  return (code - (range >> 4)) % 2 == 0 ? CharClass::upper : CharClass::lower;
}

namespace {

struct Lead {
  uint8_t length;     // 0: can begin nothing
  uint8_t low, high;  // what the second byte may be
};

// Unicode standard, table 3-7 (well-formed UTF-8 byte sequences).
constexpr Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Char read_utf8(std::string_view text, size_t offset) {
  const auto first = static_cast<uint8_t>(text[offset]);
  const Lead lead = lead_of(first);
  if (lead.length == 1) return {first, 1, true, false};
  if (lead.length == 0) return {kReplacement, 1, false, false};
  uint32_t code = first & (0x7Fu >> lead.length);
  for (uint8_t i = 1; i < lead.length; ++i) {
    if (offset + i >= text.size()) return {kReplacement, i, false, true};
    const auto byte = static_cast<uint8_t>(text[offset + i]);
    const bool good = i == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xC0) == 0x80;
    if (!good) return {kReplacement, i, false, false};
    code = code << 6 | (byte & 0x3Fu);
  }
  return {code, lead.length, true, false};
}

void append_utf8(uint32_t code, std::string& out) {
  const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

}  // namespace selm::text
