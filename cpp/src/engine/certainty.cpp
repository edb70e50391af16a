#include "engine/certainty.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention.h"

namespace selm::engine {

CertaintyMeter::CertaintyMeter(const kernels::Table& table, size_t n_vocab)
    : table_(table), powers_(kernels::padded(n_vocab)) {}

Certainty CertaintyMeter::of(std::span<const float> logits) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float first = kNone, second = kNone;
  for (const float logit : logits) {
    if (logit > first) {
      second = first;
      first = logit;
    } else if (logit > second) {
      second = logit;
    }
  }
  if (!std::isfinite(first)) return {};
  std::copy(logits.begin(), logits.end(), powers_.begin());
  std::fill(powers_.begin() + static_cast<std::ptrdiff_t>(logits.size()), powers_.end(), kNone);
  table_.exponentials(powers_.data(), powers_.size(), first);
  // Of e = exp(l - first): the sum Z, and of the entropy log Z + sum(e (first - l)) / Z the second. Eight
  // sums each, which a compiler adds up side by side; a token too unlikely for a float counts as impossible.
  constexpr size_t kSums = 8;
  double sums[kSums] = {}, weighted[kSums] = {};
  const size_t whole = logits.size() / kSums * kSums;
  const auto add = [&](size_t i, size_t lane) {
    const float e = powers_[i];
    sums[lane] += e;
    weighted[lane] += e > 0 ? e * (first - logits[i]) : 0.0f;
  };
  for (size_t i = 0; i < whole; i += kSums)
    for (size_t lane = 0; lane < kSums; ++lane) add(i + lane, lane);
  for (size_t i = whole; i < logits.size(); ++i) add(i, i - whole);
  double sum = 0, weight = 0;
  for (size_t lane = 0; lane < kSums; ++lane) {
    sum += sums[lane];
    weight += weighted[lane];
  }
  const double runner_up = std::exp(static_cast<double>(second) - static_cast<double>(first));
  return {std::log(sum) + weight / sum, (1.0 - runner_up) / sum};
}

}  // namespace selm::engine
