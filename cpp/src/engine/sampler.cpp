#include "engine/sampler.h"

#include <algorithm>
#include <cmath>

namespace selm::engine {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014) as a hash: number `draw` of the sequence of `seed`, in [0, 1).
double uniform(uint64_t seed, uint64_t draw) {
  uint64_t z = seed + (draw + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

// The likeliest token, the first of those alike; kNoToken if no logit is finite. In lanes, as the compiler
// may not reorder comparisons that could meet what is not a number.
Token likeliest(std::span<const float> logits) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -HUGE_VALF);
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] = logits[i + l] > lanes[l] ? logits[i + l] : lanes[l];
  }
  for (size_t i = whole; i < logits.size(); ++i) lanes[0] = std::fmax(lanes[0], logits[i]);
  const float best = *std::max_element(lanes, lanes + kLanes);
  if (!std::isfinite(best)) return text::kNoToken;
  return static_cast<Token>(std::find(logits.begin(), logits.end(), best) - logits.begin());
}

bool in_range(float value, float low, float high) { return value >= low && value <= high; }  // false for NaN

}  // namespace

Status Sampling::check() const {
  if (!in_range(temperature, 0.0f, 100.0f))
    return error(Code::invalid_argument, "temperature must be 0 to 100");
  if (!in_range(top_p, 0.0f, 1.0f)) return error(Code::invalid_argument, "top_p must be 0 to 1");
  if (!in_range(min_p, 0.0f, 1.0f)) return error(Code::invalid_argument, "min_p must be 0 to 1");
  if (!in_range(typical_p, 0.0f, 1.0f)) return error(Code::invalid_argument, "typical_p must be 0 to 1");
  if (!in_range(repeat_penalty, 0.01f, 100.0f)) {
    return error(Code::invalid_argument, "repeat_penalty must be 0.01 to 100");
  }
  if (!in_range(frequency_penalty, -100.0f, 100.0f) || !in_range(presence_penalty, -100.0f, 100.0f)) {
    return error(Code::invalid_argument, "frequency_penalty and presence_penalty must be -100 to 100");
  }
  for (const auto& [token, value] : bias) {
    // Minus infinity bans a token; nothing can be more than certain.
    if (std::isnan(value) || value == HUGE_VALF) {
      return error(Code::invalid_argument, "the bias of token %d is %g; it must be a number", token,
                   static_cast<double>(value));
    }
  }
  return {};
}

Result<Token> Sampler::pick(std::span<const float> logits, std::span<const Token> history, uint64_t draw) {
  const bool greedy = sampling_.temperature == 0.0f || sampling_.top_k == 1;
  if (greedy && sampling_.bias.empty() && !penalises()) {
    if (const Token token = likeliest(logits); token != text::kNoToken) return token;
  }
  candidates_.clear();
  candidates_.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    // A logit that is not a number can never be chosen.
    const float logit = std::isnan(logits[i]) ? -INFINITY : logits[i];
    candidates_.push_back({static_cast<Token>(i), logit, 0.0});
  }
  for (const auto& [token, value] : sampling_.bias) {
    if (token >= 0 && static_cast<size_t>(token) < candidates_.size()) {
      float& logit = candidates_[static_cast<size_t>(token)].logit;
      logit = std::isinf(value) ? value : logit + value;  // never inf - inf, which is no number
    }
  }
  penalise(history);
  const auto best = std::min_element(candidates_.begin(), candidates_.end(), likelier);
  if (best == candidates_.end() || !std::isfinite(best->logit)) {
    const bool banned = std::any_of(logits.begin(), logits.end(), [](float l) { return std::isfinite(l); });
    return banned ? error(Code::invalid_argument, "bias and penalties leave no token that may be chosen")
                  : error(Code::internal, "the model gave no finite logit; its weights may be damaged");
  }
  if (greedy) return best->token;

  if (sampling_.top_k > 0) keep_top_k();
  if (sampling_.typical_p < 1.0f) keep_typical();
  if (sampling_.top_p < 1.0f) keep_top_p();
  if (sampling_.min_p > 0.0f) keep_min_p();
  softmax(static_cast<double>(sampling_.temperature));
  double left = uniform(sampling_.seed, draw);
  for (const Candidate& c : candidates_) {
    left -= c.p;
    if (left < 0.0) return c.token;
  }
  return candidates_.front().token;  // rounding left a crumb
}

bool Sampler::penalises() const {
  const Sampling& s = sampling_;
  return s.repeat_penalty != 1.0f || s.frequency_penalty != 0.0f || s.presence_penalty != 0.0f;
}

void Sampler::penalise(std::span<const Token> history) {
  if (!penalises()) return;
  const Sampling& s = sampling_;
  const size_t n = std::min<size_t>(s.penalty_last_n, history.size());
  recent_.assign(history.end() - static_cast<std::ptrdiff_t>(n), history.end());
  std::sort(recent_.begin(), recent_.end());
  for (auto at = recent_.begin(), next = at; at != recent_.end(); at = next) {
    const Token token = *at;
    next = std::upper_bound(at, recent_.end(), token);
    const auto count = next - at;
    if (token < 0 || static_cast<size_t>(token) >= candidates_.size()) continue;
    float& logit = candidates_[static_cast<size_t>(token)].logit;
    logit = logit > 0.0f ? logit / s.repeat_penalty : logit * s.repeat_penalty;
    logit -= static_cast<float>(count) * s.frequency_penalty + s.presence_penalty;
  }
}

void Sampler::keep_top_k() {
  const size_t k = std::min<size_t>(sampling_.top_k, candidates_.size());
  const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(k);
  std::partial_sort(candidates_.begin(), end, candidates_.end(), likelier);
  candidates_.erase(end, candidates_.end());
}

void Sampler::softmax(double temperature) {
  double top = -HUGE_VAL;
  for (const Candidate& c : candidates_) top = std::max(top, static_cast<double>(c.logit));
  double sum = 0.0;
  for (Candidate& c : candidates_) {
    c.p = std::exp((static_cast<double>(c.logit) - top) / temperature);
    sum += c.p;
  }
  for (Candidate& c : candidates_) c.p /= sum;
}

// Keeps the tokens whose surprise is nearest to the expected one, until typical_p of the mass.
void Sampler::keep_typical() {
  softmax(1.0);
  double entropy = 0.0;
  for (const Candidate& c : candidates_) {
    if (c.p > 0.0) entropy -= c.p * std::log(c.p);
  }
  const auto distance = [entropy](const Candidate& c) {
    return c.p > 0.0 ? std::abs(-std::log(c.p) - entropy) : HUGE_VAL;
  };
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [&](const Candidate& a, const Candidate& b) { return distance(a) < distance(b); });
  double mass = 0.0;
  size_t keep = 0;
  while (keep < candidates_.size() && (keep == 0 || mass < static_cast<double>(sampling_.typical_p))) {
    mass += candidates_[keep++].p;
  }
  candidates_.resize(keep);
}

// The smallest set of most likely tokens that holds top_p of the mass; at least one.
void Sampler::keep_top_p() {
  softmax(1.0);
  // A whole vocabulary takes longer to sort than a small model to run; most of it weighs nothing.
  std::erase_if(candidates_, [](const Candidate& c) { return c.p < 1e-13; });
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  double mass = 0.0;
  size_t keep = 0;
  while (keep < candidates_.size() && (keep == 0 || mass < static_cast<double>(sampling_.top_p))) {
    mass += candidates_[keep++].p;
  }
  candidates_.resize(keep);
}

// Tokens at least min_p times as likely as the likeliest.
void Sampler::keep_min_p() {
  softmax(1.0);
  double best = 0.0;
  for (const Candidate& c : candidates_) best = std::max(best, c.p);
  const double floor = best * static_cast<double>(sampling_.min_p);
  std::erase_if(candidates_, [floor](const Candidate& c) { return c.p < floor; });
}

}  // namespace selm::engine
