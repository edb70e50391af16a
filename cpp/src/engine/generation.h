// A reply being made: prompt in, pieces of valid UTF-8 out, one token a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/certainty.h"
#include "engine/sampler.h"
#include "engine/session.h"
#include "grammar/matcher.h"

namespace selm::engine {

enum class Finish { none, stop, length, context, cancelled, deadline };

struct GenerationOptions {
  uint32_t max_tokens = 0;  // 0: until the context is full
  std::vector<std::string> stop;
  bool ignore_end = false;
  bool special = false;  // render control tokens
  bool reuse_prefix = true;
  Draft draft = Draft::automatic;
  // For calibrating: with Draft::calibrated this threshold instead of the file's; what the whole model would
  // have said in place of each early token is then looked at.
  float exit_threshold = 0.0f;
  std::shared_ptr<const grammar::Constraint> constraint;  // what the reply has to be; none: anything
};

struct GenerationStats {
  uint32_t prompt_tokens = 0, cached_tokens = 0, tokens = 0, decode_steps = 0;
  uint32_t drafted = 0, accepted = 0;  // tokens guessed ahead, and those that were right
  uint32_t early = 0;                  // kept unverified, with Draft::calibrated
  uint32_t early_wrong = 0;  // of those, what the whole model found less likely; with exit_threshold alone
  double prompt_seconds = 0, decode_seconds = 0, first_token_seconds = 0;
  double entropy = 0, margin = 0;  // summed over `judged` tokens, the end token too
  uint32_t judged = 0;
  Finish finish = Finish::none;
};

// Finds stop strings across pieces: lets text through once no stop string can begin in it.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);
  // Appends what is certain to *out; true when a stop string was met (the text ends before it).
  bool push(std::string_view text, std::string* out);
  // What was held back, at the end.
  std::string flush();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

class Generation {
 public:
  // The session is lent until the generation ends. `sampling` has passed its check.
  // Errors: invalid_argument (also: drafts by exits that the model has not, or that are not calibrated),
  // context_full.
  static Result<std::unique_ptr<Generation>> create(Session& session, std::span<const Token> prompt,
                                                    Sampling sampling, GenerationOptions options);

  ~Generation() {
    if (early_ > 0) session_.forget_drafts();
  }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  struct Step {
    std::string_view text;  // until the next step
    Token token;            // kNoToken at the end
    Finish finish;
  };
  Result<Step> next();
  const GenerationStats& stats() const { return stats_; }

 private:
  Generation(Session& session, std::span<const Token> prompt, Sampling sampling, GenerationOptions options);
  void finish(Finish finish);
  Step end(Finish how);
  // Each evaluates what the session lacks of the history and appends what is picked.
  Status read_prompt();
  Status decode();
  Status decode_by_lookup(size_t most, bool* done);
  Status decode_by_exit(size_t most, bool* done);
  Status decode_early(size_t most);
  Status settle_early(Logits which);
  Result<size_t> pick(size_t rows, std::span<const Token> guesses);
  Status pick_one(std::span<float> logits, uint64_t draw);
  Result<size_t> settle(std::span<const Token> piece);

  Session& session_;
  std::vector<Token> history_;  // prompt and reply, as far as it was picked
  size_t given_ = 0;            // of those, how many the caller has
  bool ended_ = false;          // the end token was picked
  Sampler sampler_;
  CertaintyMeter certainty_;
  GenerationOptions options_;
  std::optional<grammar::Matcher> matcher_;
  StopFilter stops_;
  text::Utf8Stream utf8_;
  std::vector<float> logits_;  // [kMaxVerified or 1, n_vocab]
  std::string text_;
  size_t held_ = 0;  // what the session holds between steps
  // With Draft::calibrated: where a draft is sure enough, and how many tokens of the history after held_ went
  // no further than to the exit.
  double threshold_ = 0;
  size_t early_ = 0;
  Token picked_ = text::kNoToken;  // last
  bool started_ = false;
  GenerationStats stats_;
};

}  // namespace selm::engine
