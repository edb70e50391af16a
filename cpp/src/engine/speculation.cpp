#include "engine/speculation.h"

#include <algorithm>
#include <cmath>

namespace selm::engine {
namespace {

constexpr double kNewest = 0.15;      // share of the newest time in a mean
constexpr double kNewestGuess = 0.1;  // of the newest guess
constexpr double kKept = 0.95;        // of what earlier pieces' times weigh, with each new one
constexpr double kHoldUp = 2;         // times what was expected; what took longer counts as that
constexpr double kWorthwhile = 1.05;  // times plain decoding
constexpr size_t kLongestMatch = 8;
constexpr size_t kLookBack = 16384;  // tokens

}  // namespace

// Of several tokens: a line through what was measured. (A mean for each number of tokens would keep a number
// that met a hold-up once from being tried again.)
double Pace::cost(size_t n) const {
  const double plain = plain_seconds_ > 0 ? plain_seconds_ : several_.weight > 0 ? several_.seconds : 1;
  if (n == 1) return plain;
  const double tokens = static_cast<double>(n);
  if (several_.weight == 0) return plain * (1 + share_ * (tokens - 1));
  const double slope =
      several_.spread > 1 ? std::max(several_.together / several_.spread, 0.0) : share_ * plain;
  return std::max(several_.seconds + slope * (tokens - several_.n), plain);
}

double Pace::gain(size_t kind, size_t n) const {
  double tokens = 1;
  double chance = rate_[kind].first;
  for (size_t i = 1; i < n; ++i) {
    tokens += chance;
    chance *= rate_[kind].next;
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
  // Other work on the machine holds a token up now and then; that says nothing about the next one.
  if (n == 1 ? plain_seconds_ > 0 : several_.weight > 0) seconds = std::min(seconds, kHoldUp * cost(n));
  if (n == 1) {
    plain_seconds_ = plain_seconds_ > 0 ? plain_seconds_ + kNewest * (seconds - plain_seconds_) : seconds;
  } else {
    several_.weight = kKept * several_.weight + 1;
    const double share = 1 / several_.weight;
    const double from_n = static_cast<double>(n) - several_.n, from_seconds = seconds - several_.seconds;
    several_.n += share * from_n;
    several_.seconds += share * from_seconds;
    several_.spread += share * (from_n * (static_cast<double>(n) - several_.n) - several_.spread);
    several_.together += share * (from_n * (seconds - several_.seconds) - several_.together);
  }
  const size_t tested = std::min(right + 1, n - 1);
  for (size_t i = 0; i < tested; ++i) {
    double& rate = i == 0 ? rate_[kind].first : rate_[kind].next;
    rate += kNewestGuess * ((i < right ? 1.0 : 0.0) - rate);
  }
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
    if (matched <= best.matched) continue;
    best.matched = matched;
    from = end;
  }
  if (best.matched > 0) best.count = std::min(most, kMaxVerified);
  for (size_t i = 0; i < best.count; ++i)
    best.follows[i] = from + i < n ? history[from + i] : best.follows[i - (n - from)];
  return best;
}

}  // namespace selm::engine
