// Which states of a grammar read short texts alike.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar/grammar.h"

namespace selm::grammar {

// For each state the first one that reads every text of up to `bytes` bytes as it does: stops at the same
// byte, or ends its rule or calls the same rules after the same bytes. So are nearly all positions of a
// string that may have 100 letters. Where the grammar is too large to find out, each stands for itself.
std::vector<uint32_t> alike(const Grammar& grammar, uint32_t bytes);

}  // namespace selm::grammar
