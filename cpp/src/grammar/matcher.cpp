#include "grammar/matcher.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace selm::grammar {

std::shared_ptr<const LocalMask> Constraint::kept(uint32_t state, bool of_long) const {
  const std::lock_guard lock(mutex_);
  const auto at = masks_.find(uint64_t{state} << 1 | (of_long ? 1 : 0));
  return at == masks_.end() ? nullptr : at->second;
}

void Constraint::keep(uint32_t state, bool of_long, std::shared_ptr<const LocalMask> mask) const {
  const std::lock_guard lock(mutex_);
  bytes_ += mask->allowed.size() * sizeof(uint64_t) + mask->beyond.size() * sizeof(LocalMask::Span);
  if (bytes_ > kMostKept) {
    masks_.clear();
    bytes_ = 0;
  }
  masks_.insert_or_assign(uint64_t{state} << 1 | (of_long ? 1 : 0), std::move(mask));
}

Matcher::Matcher(std::shared_ptr<const Constraint> constraint)
    : constraint_(std::move(constraint)),
      grammar_(constraint_->grammar()),
      allowed_(constraint_->trie().vocabulary() / 64 + 1, 0) {
  arrive({grammar_.starts[0], kRoot}, &now_);
  lost_ = steps_ >= kMostSteps;
}

uint32_t Matcher::frame(Frame frame) {
  const auto number = static_cast<uint32_t>(frames_.size());
  const auto [at, fresh] = numbers_.emplace(key(frame), number);
  if (fresh) frames_.push_back(frame);
  return at->second;
}

void Matcher::forget_frames(size_t count) {
  for (; frames_.size() > count; frames_.pop_back()) numbers_.erase(key(frames_.back()));
}

// Adds a state and all that is reached from it without a byte: into calls, and out of rules that end.
void Matcher::arrive(Frame at, Places* places) {
  todo_.assign(1, at);
  seen_.clear();
  while (!todo_.empty() && steps_ < kMostSteps) {
    const Frame here = todo_.back();
    todo_.pop_back();
    if (std::find(seen_.begin(), seen_.end(), here) != seen_.end()) continue;
    seen_.push_back(here);
    steps_ += 4 + (seen_.size() + places->places.size()) / 16;
    const Grammar::State &state = grammar_.states[here.state], &next = grammar_.states[here.state + 1];
    if (state.edges < next.edges &&
        std::find(places->places.begin(), places->places.end(), here) == places->places.end())
      places->places.push_back(here);
    for (uint32_t c = state.calls; c < next.calls; ++c) {
      const Grammar::Call& call = grammar_.calls[c];
      uint32_t caller = here.caller;  // a call that is the last of its rule leaves nothing to come back to
      if (!grammar_.only_ends(call.after)) caller = frame({call.after, here.caller});
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
    const Grammar::Edge* edge = grammar_.edge(at.state, byte);
    if (edge == nullptr) continue;
    const Grammar::State &state = grammar_.states[edge->to], &next = grammar_.states[edge->to + 1];
    if (from.places.size() == 1 && !state.accepts && state.calls == next.calls)
      to->places.push_back({edge->to, at.caller});  // nothing else is reached: within a string, mostly
    else
      arrive({edge->to, at.caller}, to);
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
      forget_frames(open.back().frames);
      open.pop_back();
    }
    if (path_.size() <= open.size()) path_.emplace_back();
    const TokenTrie::Node& node = trie.node(i);
    Places& here = path_[open.size()];
    const size_t frames = frames_.size();
    step(open.empty() ? from : path_[open.size() - 1], node.byte, &here);
    if (here.none()) {
      forget_frames(frames);
      i = node.end;
      continue;
    }
    allow(i, allowed);
    ++i;
    if (i == node.end) {
      forget_frames(frames);
      continue;
    }
    if (here.beyond && beyond) beyond->push_back({i, node.end});
    open.push_back({node.end, frames});
  }
  if (!open.empty()) forget_frames(open.front().frames);
}

void Matcher::allow(uint32_t node, Bits* allowed) const {
  const TokenTrie& trie = constraint_->trie();
  const uint32_t first = trie.node(node).first;  // or a bit after the last token's: no branch
  (*allowed)[first / 64] |= uint64_t{1} << (first % 64);
  if (!trie.node(node).several) return;
  trie.tokens_at(node, [&](text::Token token) {
    const auto t = static_cast<size_t>(token);
    (*allowed)[t / 64] |= uint64_t{1} << (t % 64);
  });
}

// The states that a walk comes to, each with a table of where bytes lead: found out once, as a walk through a
// large vocabulary asks a hundred thousand times.
class Matcher::Rows {
 public:
  static constexpr int32_t kDead = -1;

  explicit Rows(const Grammar& grammar) : grammar_(grammar) {}

  int32_t of(uint32_t state) {
    const auto [at, fresh] = numbers_.emplace(state, static_cast<int32_t>(states_.size()));
    if (fresh) {
      states_.push_back(state);
      table_.resize(table_.size() + 256, kUnknown);
      const Grammar::State &here = grammar_.states[state], &next = grammar_.states[state + 1];
      plain_.push_back(here.calls == next.calls && !here.accepts);
    }
    return at->second;
  }
  int32_t step(int32_t row, uint8_t byte) {
    const size_t place = static_cast<size_t>(row) * 256 + byte;
    if (table_[place] != kUnknown) return table_[place];
    const Grammar::Edge* edge = grammar_.edge(state(row), byte);
    const int32_t found = edge == nullptr ? kDead : of(edge->to);
    return table_[place] = found;
  }
  uint32_t state(int32_t row) const { return states_[static_cast<size_t>(row)]; }
  bool plain(int32_t row) const { return plain_[static_cast<size_t>(row)] != 0; }  // it only reads

 private:
  static constexpr int32_t kUnknown = -2;

  const Grammar& grammar_;
  std::unordered_map<uint32_t, int32_t> numbers_;
  std::vector<uint32_t> states_;
  std::vector<uint8_t> plain_;
  std::vector<int32_t> table_;
};

// The same for a state by itself; the nodes are those of whole tokens. Within strings and numbers, where most
// of the vocabulary may follow, a text stands in one place: a state, without anything to come back to.
void Matcher::walk_alone(uint32_t state, uint32_t begin, uint32_t end, LocalMask* found) {
  const TokenTrie& trie = constraint_->trie();
  Rows rows(grammar_);
  std::vector<int32_t> at(trie.longest() + 1);  // by depth
  at[0] = rows.of(state);
  for (uint32_t i = begin; i < end;) {
    const TokenTrie::Node& node = trie.node(i);
    const int32_t to = rows.step(at[node.depth], node.byte);
    if (to == Rows::kDead) {
      i = node.end;
      continue;
    }
    allow(i, &found->allowed);
    at[node.depth + 1u] = to;
    ++i;
    if (rows.plain(to) || i == node.end) continue;
    const Grammar::State &here = grammar_.states[rows.state(to)], &next = grammar_.states[rows.state(to) + 1];
    if (here.calls == next.calls) {
      found->beyond.push_back({i, node.end});
      if (here.edges == next.edges) i = node.end;
      continue;
    }
    const size_t frames = frames_.size();
    Places from;
    arrive({rows.state(to), kBeyond}, &from);
    if (from.beyond) found->beyond.push_back({i, node.end});
    walk(i, node.end, from, &found->allowed, &found->beyond);
    forget_frames(frames);
    i = node.end;
  }
}

// The bits after the last token's.
void Matcher::clear_rest(Bits* bits) const {
  bits->back() &= (uint64_t{1} << (constraint_->trie().vocabulary() % 64)) - 1;
}

std::shared_ptr<const LocalMask> Matcher::local(uint32_t state, bool of_long) {
  if (!of_long) state = constraint_->alike_to(state);
  if (std::shared_ptr<const LocalMask> kept = constraint_->kept(state, of_long)) return kept;
  const TokenTrie& trie = constraint_->trie();
  auto made = std::make_shared<LocalMask>();
  made->allowed.assign(allowed_.size(), 0);
  if (of_long)
    walk_alone(state, trie.short_size(), trie.size(), made.get());
  else
    walk_alone(state, 0, trie.short_size(), made.get());
  clear_rest(&made->allowed);
  if (steps_ < kMostSteps) constraint_->keep(state, of_long, made);
  return made;
}

Result<const Bits*> Matcher::allowed() {
  steps_ = lost_ ? kMostSteps : 0;
  std::fill(allowed_.begin(), allowed_.end(), 0);
  for (const Frame& at : now_.places) {
    for (const bool of_long : {false, true}) {
      if (steps_ >= kMostSteps) break;
      const std::shared_ptr<const LocalMask> mask = local(at.state, of_long);
      for (size_t i = 0; i < allowed_.size(); ++i) allowed_[i] |= mask->allowed[i];
      if (at.caller == kRoot || mask->beyond.empty()) continue;
      const size_t frames = frames_.size();
      Places after;
      arrive(frames_[at.caller], &after);
      for (const LocalMask::Span& span : mask->beyond) walk(span.begin, span.end, after, &allowed_, nullptr);
      forget_frames(frames);
    }
  }
  clear_rest(&allowed_);
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
  for (size_t begin = 0; begin < logits.size(); begin += 64) {
    const size_t count = std::min<size_t>(64, logits.size() - begin);
    const uint64_t word = (*bits)[begin / 64];
    if (word == 0) std::fill_n(logits.begin() + static_cast<std::ptrdiff_t>(begin), count, -HUGE_VALF);
    if (word == 0 || word == ~uint64_t{0}) continue;
    for (size_t i = 0; i < count; ++i)
      if ((word >> i & 1) == 0) logits[begin + i] = -HUGE_VALF;
  }
  return {};
}

Result<bool> Matcher::read(text::Token token) {
  const text::Tokenizer& tokenizer = constraint_->tokenizer();
  const std::string piece = tokenizer.piece(token, false);
  if (piece.empty() || tokenizer.is_end(token)) return false;
  return read(piece);
}

Result<bool> Matcher::read(std::string_view bytes) {
  steps_ = lost_ ? kMostSteps : 0;
  const size_t frames = frames_.size();
  Places at = now_, next;
  for (const char byte : bytes) {
    step(at, static_cast<uint8_t>(byte), &next);
    std::swap(at, next);
    if (steps_ >= kMostSteps) {
      forget_frames(frames);
      return error(Code::unsupported, "the grammar is too ambiguous for this text");
    }
    if (at.places.empty() && !at.complete) {
      forget_frames(frames);
      return false;
    }
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
  numbers_.clear();
  for (uint32_t f = 0; f < frames_.size(); ++f) numbers_.emplace(key(frames_[f]), f);
}

}  // namespace selm::grammar
