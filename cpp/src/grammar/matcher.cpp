#include "grammar/matcher.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace selm::grammar {

std::shared_ptr<const LocalMask> Constraint::kept(uint32_t state) const {
  const std::lock_guard lock(mutex_);
  const auto at = masks_.find(state);
  return at == masks_.end() ? nullptr : at->second;
}

void Constraint::keep(uint32_t state, std::shared_ptr<const LocalMask> mask) const {
  const std::lock_guard lock(mutex_);
  bytes_ += mask->allowed.size() * sizeof(uint64_t) + mask->beyond.size() * sizeof(LocalMask::Span);
  if (bytes_ > kMostKept) {
    masks_.clear();
    bytes_ = 0;
  }
  masks_.insert_or_assign(state, std::move(mask));
}

Matcher::Matcher(std::shared_ptr<const Constraint> constraint)
    : constraint_(std::move(constraint)),
      grammar_(constraint_->grammar()),
      allowed_((constraint_->trie().vocabulary() + 63) / 64, 0) {
  arrive({grammar_.starts[0], kRoot}, &now_);
}

// Adds a state and all that is reached from it without a byte: into calls, and out of rules that end.
void Matcher::arrive(Frame at, Places* places) {
  const size_t before = frames_.size();
  todo_.assign(1, at);
  seen_.clear();
  while (!todo_.empty()) {
    const Frame here = todo_.back();
    todo_.pop_back();
    if (std::find(seen_.begin(), seen_.end(), here) != seen_.end()) continue;
    seen_.push_back(here);
    steps_ += seen_.size();
    const Grammar::State &state = grammar_.states[here.state], &next = grammar_.states[here.state + 1];
    if (state.edges < next.edges &&
        std::find(places->places.begin(), places->places.end(), here) == places->places.end())
      places->places.push_back(here);
    for (uint32_t c = state.calls; c < next.calls; ++c) {
      const Grammar::Call& call = grammar_.calls[c];
      uint32_t caller = here.caller;  // a call that is the last of its rule leaves nothing to come back to
      if (!grammar_.only_ends(call.after)) {
        const Frame frame = {call.after, here.caller};
        const auto known =
            std::find(frames_.begin() + static_cast<std::ptrdiff_t>(before), frames_.end(), frame);
        caller = static_cast<uint32_t>(known - frames_.begin());
        if (known == frames_.end()) frames_.push_back(frame);
      }
      todo_.push_back({grammar_.starts[call.rule], caller});
    }
    if (!state.accepts) continue;
    if (here.caller == kRoot)
      places->complete = true;
    else if (here.caller == kBeyond)
      places->beyond = true;
    else
      todo_.push_back(frames_[here.caller]);
  }
}

void Matcher::step(const Places& from, uint8_t byte, Places* to) {
  to->clear();
  for (const Frame& at : from.places) {
    ++steps_;
    const uint32_t last = grammar_.states[at.state + 1].edges;
    for (uint32_t e = grammar_.states[at.state].edges; e < last; ++e) {
      const Grammar::Edge& edge = grammar_.edges[e];
      if (byte < edge.low) break;
      if (byte > edge.high) continue;
      const Grammar::State &state = grammar_.states[edge.to], &next = grammar_.states[edge.to + 1];
      if (from.places.size() == 1 && !state.accepts && state.calls == next.calls)
        to->places.push_back({edge.to, at.caller});  // nothing else is reached: within a string, mostly
      else
        arrive({edge.to, at.caller}, to);
      break;  // edges do not overlap
    }
  }
}

// Marks the tokens that end in these nodes of the trie, which are read from there.
void Matcher::walk(uint32_t begin, uint32_t end, const Places& from, Bits* allowed,
                   std::vector<LocalMask::Span>* beyond) {
  const TokenTrie& trie = constraint_->trie();
  struct Open {
    uint32_t end;
    size_t frames;  // how many there were before
  };
  std::vector<Open> open;
  for (uint32_t i = begin; i < end && steps_ < kMostSteps;) {
    while (!open.empty() && open.back().end <= i) {
      frames_.resize(open.back().frames);
      open.pop_back();
    }
    if (path_.size() <= open.size()) path_.emplace_back();
    const TokenTrie::Node& node = trie.node(i);
    Places& here = path_[open.size()];
    const size_t frames = frames_.size();
    step(open.empty() ? from : path_[open.size() - 1], node.byte, &here);
    if (here.none()) {
      frames_.resize(frames);
      i = node.end;
      continue;
    }
    trie.tokens_at(i, [&](text::Token token) {
      const auto t = static_cast<size_t>(token);
      (*allowed)[t / 64] |= uint64_t{1} << (t % 64);
    });
    ++i;
    if (i == node.end) {
      frames_.resize(frames);
      continue;
    }
    if (here.beyond && beyond) beyond->push_back({i, node.end});
    open.push_back({node.end, frames});
  }
  if (!open.empty()) frames_.resize(open.front().frames);
}

std::shared_ptr<const LocalMask> Matcher::local(uint32_t state) {
  if (std::shared_ptr<const LocalMask> kept = constraint_->kept(state)) return kept;
  auto made = std::make_shared<LocalMask>();
  made->allowed.assign(allowed_.size(), 0);
  Places from;
  from.places.push_back({state, kBeyond});
  walk(0, constraint_->trie().size(), from, &made->allowed, &made->beyond);
  if (steps_ < kMostSteps) constraint_->keep(state, made);
  return made;
}

Result<const Bits*> Matcher::allowed() {
  steps_ = 0;
  std::fill(allowed_.begin(), allowed_.end(), 0);
  for (const Frame& at : now_.places) {
    const std::shared_ptr<const LocalMask> mask = local(at.state);
    for (size_t i = 0; i < allowed_.size(); ++i) allowed_[i] |= mask->allowed[i];
    if (at.caller == kRoot || mask->beyond.empty()) continue;
    const size_t frames = frames_.size();
    Places after;
    arrive(frames_[at.caller], &after);
    for (const LocalMask::Span& span : mask->beyond) walk(span.begin, span.end, after, &allowed_, nullptr);
    frames_.resize(frames);
  }
  if (steps_ >= kMostSteps) {
    return error(Code::unsupported,
                 "the grammar is too ambiguous: which tokens may follow takes more than %llu steps",
                 static_cast<unsigned long long>(kMostSteps));
  }
  const auto add = [this](text::Token token) {
    allowed_[static_cast<size_t>(token) / 64] |= uint64_t{1} << (static_cast<size_t>(token) % 64);
  };
  if (now_.complete) std::for_each(constraint_->trie().ends().begin(), constraint_->trie().ends().end(), add);
  if (!now_.complete &&
      std::all_of(allowed_.begin(), allowed_.end(), [](uint64_t bits) { return bits == 0; }))
    return error(Code::unsupported, "the model's vocabulary has no token that goes on as the grammar wants");
  return &allowed_;
}

Status Matcher::mask(std::span<float> logits) {
  SELM_ASSIGN(const Bits* bits, allowed());
  for (size_t t = 0; t < logits.size(); ++t)
    if (((*bits)[t / 64] >> (t % 64) & 1) == 0) logits[t] = -HUGE_VALF;
  return {};
}

Result<bool> Matcher::read(text::Token token) {
  const text::Tokenizer& tokenizer = constraint_->tokenizer();
  const std::string piece = tokenizer.piece(token, false);
  if (piece.empty() || tokenizer.is_end(token)) return false;
  return read(piece);
}

Result<bool> Matcher::read(std::string_view bytes) {
  steps_ = 0;
  const size_t frames = frames_.size();
  Places at = now_, next;
  for (const char byte : bytes) {
    step(at, static_cast<uint8_t>(byte), &next);
    std::swap(at, next);
    if (at.places.empty() && !at.complete) {
      frames_.resize(frames);
      return false;
    }
    if (steps_ >= kMostSteps) return error(Code::unsupported, "the grammar is too ambiguous for this text");
  }
  now_ = std::move(at);
  forget();
  return true;
}

// Forgets frames that nothing comes back to.
void Matcher::forget() {
  if (frames_.size() < 4096) return;
  std::vector<bool> needed(frames_.size(), false);
  for (const Frame& at : now_.places)
    for (uint32_t f = at.caller; f != kRoot && !needed[f]; f = frames_[f].caller) needed[f] = true;
  std::vector<uint32_t> number(frames_.size());
  std::vector<Frame> kept;
  for (size_t f = 0; f < frames_.size(); ++f) {  // a frame's caller stands before it
    if (!needed[f]) continue;
    number[f] = static_cast<uint32_t>(kept.size());
    kept.push_back({frames_[f].state, frames_[f].caller == kRoot ? kRoot : number[frames_[f].caller]});
  }
  for (Frame& at : now_.places)
    if (at.caller != kRoot) at.caller = number[at.caller];
  frames_ = std::move(kept);
}

}  // namespace selm::grammar
