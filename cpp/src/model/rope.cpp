#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace selm::model {
namespace {

// The (fractional) pair whose wave turns `turns` times within the original context.
double pair_with_turns(const Rope& rope, double turns) {
  const double wave = static_cast<double>(rope.original_context) / (turns * 2.0 * std::numbers::pi);
  return static_cast<double>(rope.n_rot) * std::log(wave) / (2.0 * std::log(rope.base));
}

}  // namespace

RopeTable::RopeTable(const Rope& rope, const std::vector<float>& factors)
    : magnitude_(rope.attention_factor) {
  const size_t n_pairs = rope.n_rot / 2;
  double low = 0.0;
  double high = 0.0;
  if (rope.scaling == RopeScaling::yarn) {
    low = std::max(0.0, std::floor(pair_with_turns(rope, rope.beta_fast)));
    high = std::min(static_cast<double>(rope.n_rot) - 1.0, std::ceil(pair_with_turns(rope, rope.beta_slow)));
    if (rope.extrapolation != 0.0) magnitude_ *= 1.0 + 0.1 * std::log(rope.factor);
  }
  for (size_t i = 0; i < n_pairs; ++i) {
    double frequency = std::pow(rope.base, -2.0 * static_cast<double>(i) / static_cast<double>(rope.n_rot));
    if (i < factors.size()) frequency /= static_cast<double>(factors[i]);
    const double interpolated = frequency / rope.factor;
    if (rope.scaling == RopeScaling::linear) {
      frequency = interpolated;
    } else if (rope.scaling == RopeScaling::yarn) {
      // Fast waves keep their frequency, slow ones are interpolated, a ramp lies between.
      const double ramp = (static_cast<double>(i) - low) / std::max(0.001, high - low);
      const double keep = (1.0 - std::clamp(ramp, 0.0, 1.0)) * rope.extrapolation;
      frequency = interpolated * (1.0 - keep) + frequency * keep;
    }
    frequencies_.push_back(frequency);
  }
}

void RopeTable::fill(size_t position, float* cos_sin) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cos_sin[2 * i] = static_cast<float>(std::cos(angle) * magnitude_);
    cos_sin[2 * i + 1] = static_cast<float>(std::sin(angle) * magnitude_);
  }
}

}  // namespace selm::model
