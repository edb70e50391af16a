#include "engine/speculation.h"

#include <algorithm>
#include <cmath>

namespace selm::engine {
namespace {

constexpr double kNewest = 0.15;      // share of the newest time in a mean
constexpr double kNewestGuess = 0.1;  // of the newest guess
constexpr double kKept = 0.95;        // of what earlier pieces' times weigh, with each new one
constexpr double kGuessShare =
    0.4;                       // of a token's time that a guess through an exit takes, until it was measured
constexpr double kHoldUp = 2;  // times what was expected; what took longer counts as that
constexpr double kWorthwhile = 1.05;  // times plain decoding
constexpr size_t kLongestMatch = 8;
constexpr size_t kLookBack = 16384;  // tokens

}  // namespace

void Line::add(double n, double seconds) {
  weight_ = kKept * weight_ + 1;
  const double share = 1 / weight_;
  const double from_n = n - n_, from_seconds = seconds - seconds_;
  n_ += share * from_n;
  seconds_ += share * from_seconds;
  spread_ += share * (from_n * (n - n_) - spread_);
  together_ += share * (from_n * (seconds - seconds_) - together_);
}

double Line::slope(double unseen) const {
  return spread_ > 0.2 ? std::max(together_ / spread_, 0.0) : unseen;
}

double Line::at(double n, double slope) const { return seconds_ + this->slope(slope) * (n - n_); }

double Pace::cost(size_t n) const {
  const double tokens = static_cast<double>(n);
  const double plain = plain_seconds_ > 0 ? plain_seconds_ : several_.empty() ? 1 : several_.at(1, 0);
  if (n == 1) return plain;
  if (several_.empty()) return plain * (1 + share_ * (tokens - 1));
  return std::max(several_.at(tokens, share_ * plain), plain);
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
  if (n == 1 ? plain_seconds_ > 0 : !several_.empty()) seconds = std::min(seconds, kHoldUp * cost(n));
  if (n > 1) {
    several_.add(static_cast<double>(n), seconds);
  } else {
    plain_seconds_ = plain_seconds_ > 0 ? plain_seconds_ + kNewest * (seconds - plain_seconds_) : seconds;
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

void Choice::Mean::add(double each) {
  // The first few count alike, then each as the newest of a few.
  const double share = count < 4 ? 1.0 / static_cast<double>(count + 1) : kNewest;
  if (count >= 4) each = std::min(each, kHoldUp * seconds);
  seconds += share * (each - seconds);
  ++count;
}

size_t Choice::band(double probability) {
  size_t found = 0;
  while (found < kBands.size() && probability >= kBands[found]) ++found;
  return found;
}

bool Choice::worth(double probability, double* chance) const {
  const double with = *chance * rate_[band(probability)];
  // A right guess saves a token's time; it costs a draft and a further token to verify.
  if (with * plain_.seconds < rounds_.slope(kGuessShare * plain_.seconds)) return false;
  *chance = with;
  return true;
}

void Choice::record_plain(double seconds) { plain_.add(seconds); }

void Choice::record(std::span<const double> probabilities, size_t right, double seconds) {
  drafted_.add(seconds / static_cast<double>(right + 1));
  const double n = static_cast<double>(probabilities.size() + 1);
  if (!rounds_.empty()) seconds = std::min(seconds, kHoldUp * rounds_.at(n, kGuessShare * plain_.seconds));
  rounds_.add(n, seconds);
  for (size_t i = 0; i < std::min(right + 1, probabilities.size()); ++i) {
    double& rate = rate_[band(probabilities[i])];
    rate += kNewestGuess * ((i < right ? 1.0 : 0.0) - rate);
  }
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
