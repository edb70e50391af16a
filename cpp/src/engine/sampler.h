// From logits to a token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"

namespace selm::engine {

using text::Token;

// The order is: bias, penalties, top-k, typical, top-p, min-p, temperature.
struct Sampling {
  float temperature = 0.7f;        // 0: the most likely token after bias and penalties
  uint32_t top_k = 40;             // 0: off
  float top_p = 0.95f;             // 1: off
  float min_p = 0.05f;             // 0: off
  float typical_p = 1.0f;          // 1: off (arXiv 2202.00666)
  float repeat_penalty = 1.0f;     // divides (or, below zero, multiplies) logits of tokens seen (1909.05858)
  float frequency_penalty = 0.0f;  // subtracted once for each time seen
  float presence_penalty = 0.0f;   // subtracted once if seen
  uint32_t penalty_last_n = 64;
  uint64_t seed = 0;
  std::vector<std::pair<Token, float>> bias;

  Status check() const;
};

class Sampler {
 public:
  explicit Sampler(Sampling sampling) : sampling_(std::move(sampling)) {
    if (penalises()) recent_.reserve(std::min<size_t>(sampling_.penalty_last_n, kReserved));
  }

  // draw: which random number of the seed's sequence to use, so that one (seed, draw) always
  // gives one number. Error: internal, where no logit is finite.
  Result<Token> pick(std::span<const float> logits, std::span<const Token> history, uint64_t draw);

 private:
  static constexpr size_t kReserved = 4096;  // recent tokens; more are made room for when there are

  struct Candidate {
    Token token;
    float logit;
    double p;  // filled by softmax
  };
  // Ties go to the smaller id, so that every build picks the same.
  static bool likelier(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  }
  bool penalises() const;
  void penalise(std::span<const Token> history);
  void keep_top_k();
  void softmax(double temperature);
  void keep_typical();
  void keep_top_p();
  void keep_min_p();

  Sampling sampling_;
  std::vector<Candidate> candidates_;
  std::vector<Token> recent_;  // sorted
};

}  // namespace selm::engine
