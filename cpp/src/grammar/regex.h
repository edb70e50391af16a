// Regular expressions as JSON Schema has them (ECMA-262, with the flag u, without what is not regular).
#pragma once

#include <string_view>

#include "grammar/automaton.h"

namespace selm::grammar {

// The strings, of code points, in which the pattern is found; `^` and `$` hold it to their ends.
// Errors: invalid_argument (no pattern), unsupported (look-around, back references, \b, \p, or too large).
Result<Dfa> regex(std::string_view pattern, size_t limit);

}  // namespace selm::grammar
