// How the code points of an automaton are written as bytes.
#pragma once

#include "grammar/automaton.h"

namespace selm::grammar {

enum class Spelling {
  plain,  // UTF-8
  // Between the quotes of a JSON string: one way for each code point (RFC 8259 section 7): as it is, but for
  // the quote, the backslash and what is below U+0020.
  json
};

// What the automaton accepts, byte by byte.
Fragment spelled(const Dfa& code_points, Spelling spelling, Nfa* bytes);
// A path from one state to another for each way to write a code point of the range.
void spell(Range range, Spelling spelling, uint32_t from, uint32_t to, Nfa* bytes);

}  // namespace selm::grammar
