// Grammars as llama.cpp writes them: GBNF.
#pragma once

#include <string_view>

#include "grammar/grammar.h"

namespace selm::grammar {

// Rules `name ::= ...` of "literals", [classes], `.`, (groups), alternatives `|` and repetitions `* + ?
// {m,n}`; the text is of the rule `root`. Errors: invalid_argument (with the line; a rule that is not there,
// or begins with itself), unsupported (too large).
Result<Grammar> gbnf(std::string_view text);

}  // namespace selm::grammar
