// Which tokens begin, end and pad a text: from the file's keys, else from well-known spellings.
#pragma once

#include <vector>

#include "base/status.h"
#include "text/pretokenizer.h"
#include "text/vocabulary.h"

namespace selm::text {

struct SpecialSet {
  SpecialTokens tokens;
  std::vector<Token> ends;  // sorted: every token that ends a reply
};

// `rules` is null for SPM. Gives control type to end tokens that the file calls plain, for example
// <|im_end|> in files converted without token types.
//
// bos, eos, eot and eom out of range are errors (-1 and 2^32 - 1 mean none); unknown, padding and
// separator are then none, for many files in use name a padding id one past the end. A file that
// asks for BOS or EOS without having one is an error; a model whose default asks gets none.
Result<SpecialSet> read_special(const gguf::File& file, const PreTokenizer* rules, Vocabulary& vocabulary);

}  // namespace selm::text
