#include "engine/generation.h"

#include <algorithm>
#include <chrono>
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
      sampler_(std::move(sampling)),
      options_(std::move(options)),
      stops_(options_.stop),
      logits_(session.model().n_vocab()) {}

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
  std::unique_ptr<Generation> generation(
      new Generation(session, prompt, std::move(sampling), std::move(options)));
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

Result<Generation::Step> Generation::next() {
  text_.clear();
  if (stats_.finish != Finish::none) return Step{text_, text::kNoToken, stats_.finish};
  const Stopwatch watch;
  if (session_.tokens().size() != held_) {
    return error(Code::invalid_argument, "the session was used while it was lent to this generation");
  }
  if (held_ >= session_.context()) return end(Finish::context);

  const std::span<const Token> fresh = std::span(history_).subspan(held_);
  const Status status = session_.eval(fresh, Logits::last, logits_.data());
  (started_ ? stats_.decode_seconds : stats_.prompt_seconds) += watch.seconds();
  if (status.code() == Code::cancelled || status.code() == Code::deadline)
    return end(interrupted(status.code()));
  if (!status.ok()) return status;
  held_ = history_.size();

  const Stopwatch sampling;
  SELM_ASSIGN(const Token token, sampler_.pick(logits_, history_, stats_.tokens));
  if (started_) {
    stats_.decode_seconds += sampling.seconds();
    ++stats_.decode_steps;
  } else {
    stats_.first_token_seconds = stats_.prompt_seconds + sampling.seconds();
  }
  started_ = true;
  const text::Tokenizer& tokenizer = session_.model().tokenizer();
  if (!options_.ignore_end && tokenizer.is_end(token)) return end(Finish::stop);
  history_.push_back(token);
  ++stats_.tokens;
  if (stops_.push(utf8_.push(tokenizer.piece(token, options_.special)), &text_)) {
    stats_.finish = Finish::stop;
    return Step{text_, token, Finish::stop};
  }
  if (options_.max_tokens != 0 && stats_.tokens >= options_.max_tokens) {
    Step step = end(Finish::length);
    step.token = token;
    return step;
  }
  return Step{text_, token, Finish::none};
}

Generation::Step Generation::end(Finish finish) {
  // The rest may complete a stop string too.
  if (!stops_.push(utf8_.flush(), &text_)) text_ += stops_.flush();
  stats_.finish = finish;
  return {text_, text::kNoToken, finish};
}

}  // namespace selm::engine
