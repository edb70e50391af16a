// Finds tokens that are cut out of the text before anything else: control and user-defined ones.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace selm::text {

class SpecialIndex {
 public:
  // Of the vocabulary's user-defined tokens, and with `control` also its control and unknown ones.
  SpecialIndex(const Vocabulary& vocabulary, bool control);

  struct Match {
    size_t begin;  // text.size() if there is none
    size_t end;
    Token id;
  };
  // The leftmost at or after `from`; of several that begin there, the longest.
  Match next(const Vocabulary& vocabulary, std::string_view text, size_t from) const;

 private:
  Match match_at(const Vocabulary& vocabulary, std::string_view text, size_t at) const;

  std::vector<Token> sorted_;  // by text, byte by byte
  uint32_t first_[257];        // where those beginning with each byte begin in sorted_
};

}  // namespace selm::text
