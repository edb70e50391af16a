// Tokens guessed ahead and verified together. What a reply says never depends on it (but for
// Draft::calibrated, which leaves verifying out): a guess counts only if it is what would have been
// picked, and pieces of up to 16 tokens give the bits of single ones. Guesses come through an early exit
// (self-speculation: arXiv 2404.16710) or from where the last tokens stood before (prompt lookup).
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "text/tokenizer.h"

namespace selm::engine {

using text::Token;

// automatic: lookup, then exits where they are trained. calibrated: what an exit is sure of is kept
// unverified.
enum class Draft { automatic, off, exit, lookup, calibrated };

inline constexpr size_t kMaxVerified = 16;  // kernels::kBatchColumns - 1

// Seconds by how many tokens were evaluated: a line through what was measured, the newest counting most. (A
// mean for each number of tokens would keep one that met a hold-up once from being tried again.)
class Line {
 public:
  bool empty() const { return weight_ == 0; }
  void add(double n, double seconds);
  // slope: what a further token costs while that was not seen.
  double at(double n, double slope) const;
  double slope(double unseen) const;

 private:
  double weight_ = 0, n_ = 0, seconds_ = 0;  // means
  double spread_ = 0, together_ = 0;         // of (n - mean)^2 and of (n - mean)(seconds - mean)
};

// How many tokens to evaluate at once: what gives the most tokens for the time, by what the
// last evaluations cost and how many guesses were right. One is plain decoding; when that is
// best, guessing is tried again after more and more tokens.
class Pace {
 public:
  // kind: guesses of which sort (below kKinds), each with rates of its own. At most `most`.
  static constexpr size_t kKinds = 4;
  // share: of one token's cost that each further one is thought to add, until it was measured.
  explicit Pace(double share) : share_(share) {}
  size_t choose(size_t kind, size_t most);
  // n tokens took that long; of the n - 1 guesses the first `right` were.
  void record(size_t kind, size_t n, size_t right, double seconds);

 private:
  double cost(size_t n) const;
  double gain(size_t kind, size_t n) const;

  double share_;
  double plain_seconds_ = 0;  // of one token; 0: not measured
  Line several_;
  struct Rate {
    double first, next;  // how often the first guess is right, and one after a right one
  };
  std::array<Rate, kKinds> rate_ = {{{0.3, 0.7}, {0.6, 0.8}, {0.7, 0.8}, {0.8, 0.8}}};
  std::array<size_t, kKinds> plain_ = {};  // tokens since guessing was given up
  std::array<size_t, kKinds> pause_ = {kFirstPause, kFirstPause, kFirstPause, kFirstPause};
  static constexpr size_t kFirstPause = 32, kLongestPause = 1024;
};

// Whether to draft through an exit, by the time that a token took with drafts and without, and for how long,
// by how often guesses of that probability were right. Drafts that do not pay are tried again after more and
// more tokens.
class Choice {
 public:
  bool draft();
  // Whether a guess of that probability is worth verifying, after guesses that are all right with this
  // chance; then that of all with it.
  bool worth(double probability, double* chance) const;
  // A token took that long without drafts; or this many did, of which one came for sure and each other if the
  // guesses, of these probabilities, were right: the first `right` were.
  void record_plain(double seconds);
  void record(std::span<const double> probabilities, size_t right, double seconds);

 private:
  static constexpr size_t kFirstPause = 32, kLongestPause = 1024, kTrial = 8, kRefresh = 64;
  struct Mean {
    double seconds = 0;  // a token
    size_t count = 0;
    void add(double each);
  };
  static constexpr std::array<double, 4> kBands = {0.1, 0.2, 0.35, 0.6};  // of probability
  static size_t band(double probability);

  Mean plain_, drafted_;
  Line rounds_;
  // Exits that learn at a low temperature are right more often than they say.
  std::array<double, kBands.size() + 1> rate_ = {0.2, 0.5, 0.7, 0.8, 0.9};
  size_t waited_ = 0, pause_ = kFirstPause, trial_ = kTrial, since_plain_ = 0;
};

// What followed the last time that history ended as it does now: `most` tokens, at most kMaxVerified. Where
// that comes to the end of the history it goes on with itself, as a text that repeats itself does.
struct Lookup {
  std::array<Token, kMaxVerified> follows = {};
  size_t count = 0;
  size_t matched = 0;  // how many tokens at the end were the same

  size_t kind() const { return matched < 2 ? 0 : matched < 3 ? 1 : matched < 5 ? 2 : 3; }
};
Lookup look_up(std::span<const Token> history, size_t most);

}  // namespace selm::engine
