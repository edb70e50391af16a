// How sure a model is of its next token: what feedback is later chosen by.
#pragma once

#include <span>
#include <vector>

#include "kernels/kernels.h"

namespace selm::engine {

struct Certainty {
  double entropy = 0;  // of the next token, in nats
  double margin = 0;   // probability of the likeliest token less that of the second
};

class CertaintyMeter {
 public:
  CertaintyMeter(const kernels::Table& table, size_t n_vocab);
  // At temperature 1, before bias, penalties and grammars; all zero where no logit is finite.
  Certainty of(std::span<const float> logits);

 private:
  const kernels::Table& table_;
  std::vector<float> logits_, powers_;  // [n_vocab], and what fills up whole vectors
};

}  // namespace selm::engine
