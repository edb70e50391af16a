#include "engine/speculation.h"

#include <algorithm>
#include <cmath>

namespace selm::engine {
namespace {

constexpr double kNewest = 0.15;      // share of the newest measurement in a mean
constexpr double kWorthwhile = 1.05;  // times plain decoding
constexpr size_t kLongestMatch = 8, kShortestMatch = 2;
constexpr size_t kLookBack = 16384;  // tokens

}  // namespace

double Pace::cost(size_t n) const {
  if (seconds_[n] > 0) return seconds_[n];
  // From the nearest one that was measured, as if each token cost the same share.
  for (size_t away = 1; away <= kMaxVerified; ++away) {
    for (const size_t m : {n - std::min(n, away), n + away}) {
      if (m < 1 || m > kMaxVerified || seconds_[m] <= 0) continue;
      return seconds_[m] * (1 + share_ * static_cast<double>(n - 1)) /
             (1 + share_ * static_cast<double>(m - 1));
    }
  }
  return 1 + share_ * static_cast<double>(n - 1);
}

double Pace::gain(size_t kind, size_t n) const {
  double tokens = 0;
  double chance = 1;
  for (size_t i = 0; i < n; ++i) {
    tokens += chance;
    chance *= rate_[kind];
  }
  return tokens / cost(n);
}

size_t Pace::choose(size_t kind, size_t most) {
  most = std::min(most, kMaxVerified);
  size_t best = 1;
  size_t best_guess = std::min<size_t>(2, most);
  for (size_t n = 2; n <= most; ++n) {
    if (gain(kind, n) > gain(kind, best_guess)) best_guess = n;
  }
  if (best_guess > 1 && gain(kind, best_guess) > gain(kind, 1) * kWorthwhile) best = best_guess;
  if (best > 1) {
    pause_[kind] = kFirstPause;
    plain_[kind] = 0;
    return best;
  }
  if (++plain_[kind] < pause_[kind]) return 1;
  plain_[kind] = 0;
  pause_[kind] = std::min(pause_[kind] * 2, kLongestPause);
  return best_guess;
}

void Pace::record(size_t kind, size_t n, size_t right, double seconds) {
  seconds_[n] = seconds_[n] > 0 ? seconds_[n] + kNewest * (seconds - seconds_[n]) : seconds;
  const size_t tested = std::min(right + 1, n - 1);
  for (size_t i = 0; i < tested; ++i) rate_[kind] += kNewest * ((i < right ? 1.0 : 0.0) - rate_[kind]);
}

bool Choice::draft() {
  if (plain_.count < 2) return false;
  if (trial_ > 0) {
    --trial_;
    return true;
  }
  if (drafted_.seconds * kWorthwhile < plain_.seconds) {
    pause_ = kFirstPause;
    if (++since_plain_ < kRefresh) return true;
    since_plain_ = 0;
    return false;
  }
  if (++waited_ < pause_) return false;
  waited_ = 0;
  pause_ = std::min(pause_ * 2, kLongestPause);
  trial_ = kTrial - 1;
  return true;
}

void Choice::record(bool drafted, size_t tokens, double seconds) {
  Mean& mean = drafted ? drafted_ : plain_;
  const double each = seconds / static_cast<double>(tokens);
  // The first few count alike, then each as the newest of a few.
  const double share = mean.count < 4 ? 1.0 / static_cast<double>(mean.count + 1) : kNewest;
  mean.seconds += share * (each - mean.seconds);
  ++mean.count;
}

Lookup look_up(std::span<const Token> history, size_t most) {
  const size_t n = history.size();
  Lookup best;
  size_t from = n;
  const size_t first = n > kLookBack ? n - kLookBack : 0;
  for (size_t end = n - std::min<size_t>(n, 1); end > first && best.matched < kLongestMatch; --end) {
    size_t matched = 0;  // tokens before `end` that are those at the end of the history
    while (matched < kLongestMatch && matched < end && history[end - 1 - matched] == history[n - 1 - matched])
      ++matched;
    if (matched < kShortestMatch || matched <= best.matched) continue;
    best.matched = matched;
    from = end;
  }
  if (best.matched > 0) best.count = std::min(most, kMaxVerified);
  for (size_t i = 0; i < best.count; ++i)
    best.follows[i] = from + i < n ? history[from + i] : best.follows[i - (n - from)];
  return best;
}

}  // namespace selm::engine
