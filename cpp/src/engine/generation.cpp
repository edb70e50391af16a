#include "engine/generation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

namespace selm::engine {
namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Finish interrupted(Code code) { return code == Code::cancelled ? Finish::cancelled : Finish::deadline; }

}  // namespace

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

bool StopFilter::push(std::string_view text, std::string* out) {
  held_ += text;
  size_t found = std::string::npos;
  for (const std::string& stop : stops_) found = std::min(found, held_.find(stop));
  if (found != std::string::npos) {
    out->append(held_, 0, found);
    held_.clear();
    return true;
  }
  // Hold back the longest end that some stop string begins with.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n)) keep = n;
    }
  }
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

std::string StopFilter::flush() { return std::exchange(held_, {}); }

Generation::Generation(Session& session, std::span<const Token> prompt, Sampling sampling,
                       GenerationOptions options)
    : session_(session),
      history_(prompt.begin(), prompt.end()),
      given_(prompt.size()),
      sampler_(std::move(sampling)),
      certainty_(session.model().kernels(), session.model().n_vocab()),
      options_(std::move(options)),
      stops_(options_.stop),
      logits_((options_.draft == Draft::off ? 1 : session.most_drafts()) * session.model().n_vocab()) {
  history_.reserve(session.context() + 1);  // nothing is allocated while a reply is made
  if (options_.constraint) matcher_.emplace(options_.constraint);
}

Result<std::unique_ptr<Generation>> Generation::create(Session& session, std::span<const Token> prompt,
                                                       Sampling sampling, GenerationOptions options) {
  if (prompt.empty()) return error(Code::invalid_argument, "the prompt holds no token");
  if (prompt.size() >= session.context()) {
    return error(Code::context_full, "a prompt of %zu tokens leaves no room in a context of %zu positions",
                 prompt.size(), session.context());
  }
  for (const Token token : prompt) {
    if (token < 0 || static_cast<uint32_t>(token) >= session.model().n_vocab()) {
      return error(Code::invalid_argument, "the token %d is not in the vocabulary of %u", token,
                   session.model().n_vocab());
    }
  }
  if (options.constraint && &options.constraint->tokenizer() != &session.model().tokenizer())
    return error(Code::invalid_argument, "the grammar was made for another model's tokenizer");
  const bool calibrated = options.draft == Draft::calibrated;
  if ((options.draft == Draft::exit || calibrated) && session.model().hparams().selm.exits.empty()) {
    return error(Code::invalid_argument, "the model has no trained exits to draft through");
  }
  if (!(options.exit_threshold >= 0.0f) || (options.exit_threshold > 0.0f && !calibrated)) {
    return error(Code::invalid_argument,
                 "an exit's threshold is more than 0, and for calibrated drafts alone");
  }
  double threshold = static_cast<double>(options.exit_threshold);
  if (calibrated && threshold == 0.0) {
    SELM_ASSIGN(threshold, session.calibrated_threshold(0));
  }
  std::unique_ptr<Generation> generation(
      new Generation(session, prompt, std::move(sampling), std::move(options)));
  generation->threshold_ = threshold;
  // What the session holds already of this prompt stays; the last token is always evaluated anew,
  // because its logits are needed.
  const std::vector<Token>& held = session.tokens();
  size_t common = 0;
  if (generation->options_.reuse_prefix) {
    const size_t limit = std::min(held.size(), prompt.size() - 1);
    while (common < limit && held[common] == prompt[common]) ++common;
  }
  common = session.truncate(common);
  session.clear_cancel();  // what was cancelled before is not this reply
  generation->held_ = common;
  generation->stats_.prompt_tokens = static_cast<uint32_t>(prompt.size());
  generation->stats_.cached_tokens = static_cast<uint32_t>(common);
  return generation;
}

Status Generation::read_prompt() {
  const std::span<const Token> fresh = std::span(history_).subspan(held_);
  if (session_.bounded()) {  // a place to come back to when the reply is made anew
    SELM_TRY(session_.eval(fresh.first(fresh.size() - 1), Logits::none, nullptr));
    session_.mark();
  }
  SELM_TRY(session_.eval(session_.bounded() ? fresh.last(1) : fresh, Logits::last, logits_.data()));
  return pick(1, {}).status();
}

// Tokens from the logits of `rows` places, as long as they are what was guessed for the next place; says
// how many guesses were right.
Result<size_t> Generation::pick(size_t rows, std::span<const Token> guesses) {
  const size_t n_vocab = session_.model().n_vocab();
  const uint64_t drawn = stats_.tokens + (history_.size() - given_);
  for (size_t i = 0; i < rows; ++i) {
    SELM_TRY(pick_one(std::span(logits_.data() + i * n_vocab, n_vocab), drawn + i));
    if (started_) ++stats_.decode_steps;
    if (ended_ || i == guesses.size() || guesses[i] != picked_) return i;
  }
  return guesses.size();
}

Status Generation::pick_one(std::span<float> logits, uint64_t draw) {
  if (matcher_ && matcher_->finished()) {  // there may be no token that says so
    ended_ = true;
    return {};
  }
  const Certainty sure = certainty_.of(logits);
  stats_.entropy += sure.entropy;
  stats_.margin += sure.margin;
  ++stats_.judged;
  if (matcher_) SELM_TRY(matcher_->mask(logits));
  SELM_ASSIGN(picked_, sampler_.pick(logits, history_, draw));
  const bool end = session_.model().tokenizer().is_end(picked_);
  ended_ = end && (matcher_ || !options_.ignore_end);
  if (ended_) return {};
  history_.push_back(picked_);
  if (!matcher_) return {};
  SELM_ASSIGN(const bool allowed, matcher_->read(picked_));
  return allowed ? Status() : error(Code::internal, "the token %d was picked against the grammar", picked_);
}

// Keeps of an evaluated piece, a token and guesses at those after it, what was right.
Result<size_t> Generation::settle(std::span<const Token> piece) {
  SELM_ASSIGN(const size_t right, pick(piece.size(), piece.subspan(1)));
  stats_.drafted += static_cast<uint32_t>(piece.size() - 1);
  stats_.accepted += static_cast<uint32_t>(right);
  session_.truncate(held_ + 1 + right);
  return right;
}

Status Generation::decode_by_lookup(size_t most, bool* done) {
  const Lookup found = look_up(history_, most - 1);
  if (found.count == 0) return {};  // and nothing is learnt
  const size_t n = session_.lookup_pace().choose(found.kind(), 1 + found.count);
  if (n == 1) return {};
  Token piece[kMaxVerified] = {history_.back()};
  std::copy_n(found.follows.begin(), n - 1, piece + 1);
  const Stopwatch watch;
  SELM_TRY(session_.eval(std::span(piece, n), Logits::all, logits_.data()));
  const double seconds = watch.seconds();
  *done = true;
  SELM_ASSIGN(const size_t right, settle(std::span(piece, n)));
  session_.lookup_pace().record(found.kind(), n, right, seconds);
  return {};
}

Status Generation::decode_by_exit(size_t most, bool* done) {
  if (most < 2 || !session_.exit_choice().draft()) return {};
  Token piece[kMaxVerified] = {history_.back()};
  double probabilities[kMaxVerified];
  const Stopwatch watch;
  double chance = 1.0;
  size_t n = 0;
  while (n < most) {
    Token next = text::kNoToken;
    double& probability = probabilities[n];
    SELM_TRY(session_.draft(piece[n], n, 0, n + 1 < most ? &next : nullptr, &probability));
    if (++n == most) break;
    // The end, guessed right, saves nothing: there is no token after it.
    if (session_.model().tokenizer().is_end(next) || !session_.exit_choice().worth(probability, &chance))
      break;
    piece[n] = next;
  }
  SELM_TRY(session_.verify(std::span(piece, n), 0, Logits::all, logits_.data()));
  const double seconds = watch.seconds();
  *done = true;
  SELM_ASSIGN(const size_t right, settle(std::span(piece, n)));
  session_.exit_choice().record(std::span(probabilities, n - 1), right, seconds);
  return {};
}

// One token: of the exit where it is sure enough, and else of the whole model, whose other layers then see
// all tokens that they have not seen, together. So what is held is always the whole model's.
Status Generation::decode_early(size_t most) {
  Token next = text::kNoToken;
  double probability = 0;
  Token* const wanted = early_ + 1 < most ? &next : nullptr;
  const Status status = session_.draft(history_.back(), early_, 0, wanted, &probability);
  early_ = status.ok() ? early_ + 1 : 0;
  SELM_TRY(status);
  const std::span<const float> said = session_.draft_logits();
  const std::vector<Token>& tokens = session_.model().draft_tokens();
  bool sure = probability >= threshold_;
  if (sure && matcher_) {  // of a token that may come, or it knows nothing of what else could
    const auto best = static_cast<size_t>(std::max_element(said.begin(), said.end()) - said.begin());
    SELM_ASSIGN(const grammar::Bits* bits, matcher_->allowed());
    const size_t token = tokens.empty() ? best : static_cast<size_t>(tokens[best]);
    sure = (*bits)[token / 64] >> (token % 64) & 1;
  }
  if (!sure) {
    SELM_TRY(settle_early(Logits::last));
    return pick(1, {}).status();
  }
  if (!tokens.empty()) std::fill_n(logits_.begin(), session_.model().n_vocab(), -HUGE_VALF);
  for (size_t i = 0; i < said.size(); ++i)
    logits_[tokens.empty() ? i : static_cast<size_t>(tokens[i])] = said[i];
  ++stats_.early;
  return pick(1, {}).status();
}

// The tokens that went no further than to the exit go through the other layers; the first row of logits_ is
// then of the last one, if that is wanted: it is not where the exit spoke after it, too.
Status Generation::settle_early(Logits which) {
  const size_t n = std::exchange(early_, 0);
  const std::span<const Token> piece = std::span(history_).subspan(held_, n);
  const bool look = options_.exit_threshold > 0.0f;
  SELM_TRY(session_.verify(piece, 0, look ? Logits::all : which, logits_.data()));
  held_ += n;
  if (!look) return {};
  const size_t n_vocab = session_.model().n_vocab();
  for (size_t i = 0; i < (which == Logits::last ? n - 1 : n); ++i) {
    const std::span<const float> logits(logits_.data() + i * n_vocab, n_vocab);
    const Token said = i + 1 < n ? piece[i + 1] : picked_;
    if (*std::max_element(logits.begin(), logits.end()) > logits[static_cast<size_t>(said)])
      ++stats_.early_wrong;
  }
  std::copy_n(logits_.begin() + static_cast<std::ptrdiff_t>((n - 1) * n_vocab), n_vocab, logits_.begin());
  return {};
}

// One token, or several where guesses were right.
Status Generation::decode() {
  size_t most = std::min(session_.most_drafts(), session_.context() - held_);
  if (options_.draft == Draft::calibrated) return decode_early(most);
  if (options_.max_tokens != 0) most = std::min<size_t>(most, options_.max_tokens - stats_.tokens);
  const bool exits = !session_.model().hparams().selm.exits.empty();
  bool done = false;
  if (options_.draft == Draft::automatic || options_.draft == Draft::lookup)
    SELM_TRY(decode_by_lookup(most, &done));
  if (!done && exits && (options_.draft == Draft::automatic || options_.draft == Draft::exit))
    SELM_TRY(decode_by_exit(most, &done));
  if (done) return {};
  const Stopwatch watch;
  SELM_TRY(session_.eval(std::span(history_).last(1), Logits::last, logits_.data()));
  if (options_.draft != Draft::off) {
    session_.lookup_pace().record(0, 1, 0, watch.seconds());
    session_.exit_choice().record_plain(watch.seconds());
  }
  return pick(1, {}).status();
}

Result<Generation::Step> Generation::next() {
  text_.clear();
  if (stats_.finish != Finish::none) return Step{text_, text::kNoToken, stats_.finish};
  const bool picked_ahead = given_ < history_.size();
  if (!picked_ahead && !ended_) {
    if (session_.tokens().size() != held_) {
      return error(Code::invalid_argument, "the session was used while it was lent to this generation");
    }
    if (held_ + early_ >= session_.context()) return end(Finish::context);
    const Stopwatch watch;
    const Status status = started_ ? decode() : read_prompt();
    (started_ ? stats_.decode_seconds : stats_.prompt_seconds) += watch.seconds();
    if (!started_) stats_.first_token_seconds = stats_.prompt_seconds;
    held_ = session_.tokens().size();
    if (status.code() == Code::cancelled || status.code() == Code::deadline)
      return end(interrupted(status.code()));
    SELM_TRY(status);
    started_ = true;
  }
  if (given_ == history_.size()) return end(Finish::stop);
  if (picked_ahead) {
    const Status status = session_.check_interrupt();
    if (!status.ok()) return end(interrupted(status.code()));
  }

  const Token token = history_[given_++];
  ++stats_.tokens;
  const text::Tokenizer& tokenizer = session_.model().tokenizer();
  if (stops_.push(utf8_.push(tokenizer.piece(token, options_.special)), &text_)) {
    finish(Finish::stop);
    return Step{text_, token, Finish::stop};
  }
  if (options_.max_tokens != 0 && stats_.tokens >= options_.max_tokens) {
    Step step = end(Finish::length);
    step.token = token;
    return step;
  }
  return Step{text_, token, Finish::none};
}

// What was picked ahead and not given is forgotten; what went only to the exit is read with the next prompt,
// if not now.
void Generation::finish(Finish finish) {
  if (early_ > 0) (void)settle_early(Logits::none);
  stats_.finish = finish;
  history_.resize(given_);
  if (session_.tokens().size() > given_) session_.truncate(given_);
}

Generation::Step Generation::end(Finish how) {
  // The rest may complete a stop string too.
  if (!stops_.push(utf8_.flush(), &text_)) text_ += stops_.flush();
  finish(how);
  return {text_, text::kNoToken, how};
}

}  // namespace selm::engine
