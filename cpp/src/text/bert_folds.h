// What the normaliser of BERT's uncased models makes of each code point: control characters go, white
// space is a space, Chinese characters stand alone, letters become small ones without accents.
#pragma once

#include <cstddef>
#include <cstdint>

namespace selm::text {

enum class Fold : uint8_t {
  text,         // becomes code + argument
  drop,         // goes
  barrier,      // goes, and nothing is ordered across it
  space,        // ends a word
  ideograph,    // becomes code + argument, a word of its own
  punctuation,  // the same
  combining,    // stays; argument: its class in canonical ordering, never 0
  // Only in the table:
  pairs,       // capital and small letters by turns
  list,        // text: kFoldLists[argument + code - first]
  ideographs,  // the same for ideographs
  sequence,    // kFoldLists[argument] code points, which follow it there
  hangul,      // a syllable: its letters, by arithmetic
};

// bert_folds.cpp, made by generate_folds.py.
struct FoldRange {
  uint32_t first_and_fold;  // {first code point} << 4 | fold
  int32_t argument;
};
extern const FoldRange kFoldRanges[];
extern const size_t kFoldRangeCount;
extern const uint32_t kFoldLists[];

}  // namespace selm::text
