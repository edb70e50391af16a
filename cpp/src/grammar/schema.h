// A JSON Schema (drafts 4 to 2020-12) as a grammar of JSON texts that it accepts.
#pragma once

#include <string_view>

#include "grammar/grammar.h"

namespace selm::grammar {

// Every text of the grammar is valid; not every valid text is of the grammar. Written are: declared
// properties in their order, others only where the schema speaks of them; code points as they are, where JSON
// lets them; numbers without a power of ten; a space or none after `,` and `:`, none elsewhere. What cannot
// be held to while writing is refused, never left out: not, if, dependent..., contains, uniqueItems but of
// few values, minProperties of names that are not declared, multipleOf but of whole numbers, unevaluated...
// beside other schemas, oneOf whose alternatives may both hold, references to other files. Errors:
// invalid_argument (no JSON, no schema, nothing is valid), unsupported (with the place in the schema).
Result<Grammar> json_schema(std::string_view schema);

}  // namespace selm::grammar
