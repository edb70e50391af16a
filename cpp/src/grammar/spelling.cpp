#include "grammar/spelling.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

namespace selm::grammar {
namespace {

void path(std::string_view text, uint32_t from, uint32_t to, Nfa* bytes) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
    const uint32_t next = i + 1 == text.size() ? to : bytes->add();
    bytes->edge(from, {byte, byte}, next);
    from = next;
  }
}

size_t encode(uint32_t code_point, std::array<uint32_t, 4>* bytes) {
  if (code_point < 0x80) {
    (*bytes)[0] = code_point;
    return 1;
  }
  const size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
  for (size_t i = n - 1; i > 0; --i) {
    (*bytes)[i] = 0x80 | (code_point & 0x3F);
    code_point >>= 6;
  }
  (*bytes)[0] = (0xF00u >> n & 0xFF) | code_point;
  return n;
}

// Ranges that are cut until the first and the last code point differ in each byte by a whole range.
void utf8(uint32_t low, uint32_t high, uint32_t from, uint32_t to, Nfa* bytes) {
  if (low > high) return;
  for (const uint32_t last : {0x7Fu, 0x7FFu, 0xD7FFu, 0xDFFFu, 0xFFFFu}) {
    if (low <= last && last < high) {
      utf8(low, last, from, to, bytes);
      return utf8(last + 1, high, from, to, bytes);
    }
  }
  if (0xD800 <= low && high <= 0xDFFF) return;
  for (uint32_t i = 1; i < 4 && high > 0x7F; ++i) {
    const uint32_t inner = (1u << (6 * i)) - 1;
    if ((low & ~inner) == (high & ~inner)) continue;
    if ((low & inner) != 0) {
      utf8(low, low | inner, from, to, bytes);
      return utf8((low | inner) + 1, high, from, to, bytes);
    }
    if ((high & inner) != inner) {
      utf8(low, (high & ~inner) - 1, from, to, bytes);
      return utf8(high & ~inner, high, from, to, bytes);
    }
  }
  std::array<uint32_t, 4> first{}, last{};
  const size_t n = encode(low, &first);
  encode(high, &last);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t next = i + 1 == n ? to : bytes->add();
    bytes->edge(from, {first[i], last[i]}, next);
    from = next;
  }
}

// The short escape of a code point in JSON, or 0.
char short_escape(uint32_t code_point) {
  switch (code_point) {
    case '"':
      return '"';
    case '\\':
      return '\\';
    case '\b':
      return 'b';
    case '\t':
      return 't';
    case '\n':
      return 'n';
    case '\f':
      return 'f';
    case '\r':
      return 'r';
    default:
      return 0;
  }
}

}  // namespace

void spell(Range range, Spelling spelling, uint32_t from, uint32_t to, Nfa* bytes) {
  if (spelling == Spelling::plain) return utf8(range.low, range.high, from, to, bytes);
  uint32_t next = range.low;  // of what stands as it is
  const auto escape = [&](uint32_t code_point) {
    if (code_point < range.low || code_point > range.high) return;
    if (code_point > next) utf8(next, code_point - 1, from, to, bytes);
    next = code_point + 1;
    char text[8];
    if (const char letter = short_escape(code_point))
      std::snprintf(text, sizeof text, "\\%c", letter);
    else
      std::snprintf(text, sizeof text, "\\u%04x", code_point);
    path(text, from, to, bytes);
  };
  for (uint32_t control = 0; control < 0x20; ++control) escape(control);
  escape('"');
  escape('\\');
  utf8(next, range.high, from, to, bytes);
}

Fragment spelled(const Dfa& code_points, Spelling spelling, Nfa* bytes) {
  std::vector<uint32_t> at(code_points.states.size());
  for (uint32_t& state : at) state = bytes->add();
  const uint32_t end = bytes->add();
  for (size_t i = 0; i < at.size(); ++i) {
    for (const Nfa::Edge& edge : code_points.states[i].edges)
      spell(edge.on, spelling, at[i], at[edge.to], bytes);
    if (code_points.states[i].accepts) bytes->empty(at[i], end);
  }
  return {at[0], end};
}

}  // namespace selm::grammar
