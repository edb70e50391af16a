#include "engine/certainty.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention.h"

namespace selm::engine {

namespace {

// Numbers that are worked on side by side: written as plain loops of this length, which compilers turn into
// vectors of whatever the processor has.
constexpr size_t kLanes = 16;
constexpr float kNone = -std::numeric_limits<float>::infinity();
// Sums of so many lanes fit a float's precision; what is added up of them is a double.
constexpr size_t kStretch = 64 * kLanes;

struct TopTwo {
  float first = kNone, second = kNone;
};

// Of a whole number of lanes; what is no number counts as nothing.
TopTwo top_two(const std::vector<float>& values) {
  float first[kLanes], second[kLanes];
  std::fill(first, first + kLanes, kNone);
  std::fill(second, second + kLanes, kNone);
  for (size_t i = 0; i < values.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = values[i + lane];
      const float lower = x < first[lane] ? x : first[lane];
      second[lane] = lower > second[lane] ? lower : second[lane];
      first[lane] = x > first[lane] ? x : first[lane];
    }
  }
  TopTwo found;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    for (const float x : {first[lane], second[lane]}) {
      found.second = std::max(found.second, std::min(x, found.first));
      found.first = std::max(found.first, x);
    }
  }
  return found;
}

}  // namespace

CertaintyMeter::CertaintyMeter(const kernels::Table& table, size_t n_vocab)
    : table_(table), logits_(kernels::padded(n_vocab), kNone), powers_(logits_.size()) {
  static_assert(kernels::kPadded % kLanes == 0);
}

Certainty CertaintyMeter::of(std::span<const float> logits) {
  std::copy(logits.begin(), logits.end(), logits_.begin());
  const TopTwo top = top_two(logits_);
  if (!std::isfinite(top.first)) return {};
  std::copy(logits_.begin(), logits_.end(), powers_.begin());
  table_.exponentials(powers_.data(), powers_.size(), top.first);
  // Of e = exp(l - first): the sum Z, and of the entropy log Z + sum(e (first - l)) / Z the second. A token
  // too unlikely for a float counts as impossible.
  double sum = 0, weight = 0;
  for (size_t begin = 0; begin < powers_.size(); begin += kStretch) {
    const size_t end = std::min(begin + kStretch, powers_.size());
    float sums[kLanes] = {}, weighted[kLanes] = {};
    for (size_t i = begin; i < end; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const float e = powers_[i + lane];
        const float below = top.first - logits_[i + lane];
        sums[lane] += e;
        weighted[lane] += e > 0 ? e * below : 0.0f;
      }
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      sum += sums[lane];
      weight += weighted[lane];
    }
  }
  const double runner_up = std::exp(static_cast<double>(top.second) - static_cast<double>(top.first));
  return {std::log(sum) + weight / sum, (1.0 - runner_up) / sum};
}

}  // namespace selm::engine
