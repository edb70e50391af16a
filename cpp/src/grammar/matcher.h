// Where in a grammar a text stands, and which tokens may come next.
//
// A text stands in a set of places, each a state and the calls that led to it. Which tokens may follow is
// asked of each state by itself first: what it answers whatever called it is kept, shared by all who match
// against the grammar (the idea is XGrammar's, arXiv 2411.15100); only tokens that run past the end of the
// state's rule are looked at with the calls that are there. States that read short texts alike share what
// they answer for all tokens but the long ones.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "grammar/alike.h"
#include "grammar/grammar.h"
#include "grammar/token_trie.h"

namespace selm::grammar {

using Bits = std::vector<uint64_t>;  // one for each token, and at least one more

// What a state allows by itself, of the short tokens or of the long ones.
struct LocalMask {
  Bits allowed;
  struct Span {
    uint32_t begin, end;  // nodes of the trie that are reached once the state's rule has ended
  };
  std::vector<Span> beyond;
};

// A grammar over a vocabulary; used by any number of matchers and threads at once.
class Constraint {
 public:
  // The tokenizer outlives it; the trie is of its vocabulary.
  Constraint(Grammar grammar, const text::Tokenizer& tokenizer, std::shared_ptr<const TokenTrie> trie)
      : grammar_(std::move(grammar)),
        alike_(alike(grammar_, TokenTrie::kShort)),
        tokenizer_(tokenizer),
        trie_(std::move(trie)) {}

  const Grammar& grammar() const { return grammar_; }
  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  const TokenTrie& trie() const { return *trie_; }
  // The state that answers for this one where tokens are short.
  uint32_t alike_to(uint32_t state) const { return alike_[state]; }
  // Nothing where it is not kept yet, or not any more.
  std::shared_ptr<const LocalMask> kept(uint32_t state, bool of_long) const;
  void keep(uint32_t state, bool of_long, std::shared_ptr<const LocalMask> mask) const;

 private:
  static constexpr size_t kMostKept = 32 << 20;  // bytes

  Grammar grammar_;
  std::vector<uint32_t> alike_;  // of each state
  const text::Tokenizer& tokenizer_;
  std::shared_ptr<const TokenTrie> trie_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<uint64_t, std::shared_ptr<const LocalMask>> masks_;
  mutable size_t bytes_ = 0;
};

class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const Constraint> constraint);

  // Which tokens may come next, those that end a text too where it may end: [vocabulary] bits, valid until
  // the next call. Errors: unsupported, where the grammar is so ambiguous that finding out takes too many
  // steps, or the vocabulary has no token to go on with.
  Result<const Bits*> allowed();
  // The same on logits [vocabulary]: what may not come is infinitely unlikely.
  Status mask(std::span<float> logits);
  // The text may end here.
  bool complete() const { return now_.complete; }
  // Nothing more can be read: the text must end here.
  bool finished() const { return now_.places.empty() && !lost_; }
  // Reads a text; false, and stays where it was, where the grammar does not allow it.
  Result<bool> read(std::string_view bytes);
  Result<bool> read(text::Token token);
  const Constraint& constraint() const { return *constraint_; }

 private:
  class Rows;
  static constexpr uint32_t kRoot = ~0u;    // called by nobody: the text ends
  static constexpr uint32_t kBeyond = ~1u;  // called by whoever it is
  static constexpr uint64_t kMostSteps = 20'000'000;

  struct Frame {
    uint32_t state, caller;  // to go on with after the call; caller: a place in frames_
    bool operator==(const Frame&) const = default;
  };
  struct Places {
    std::vector<Frame> places;  // states that read bytes
    bool complete = false;      // the text may end
    bool beyond = false;        // so may the rule whose caller is kBeyond
    void clear() {
      places.clear();
      complete = beyond = false;
    }
    bool none() const { return places.empty() && !beyond && !complete; }
  };

  static uint64_t key(const Frame& frame) { return uint64_t{frame.state} << 32 | frame.caller; }
  uint32_t frame(Frame frame);       // its number: one that is there already has one
  void forget_frames(size_t count);  // all but the first
  void arrive(Frame at, Places* places);
  void step(const Places& from, uint8_t byte, Places* to);
  std::shared_ptr<const LocalMask> local(uint32_t state, bool of_long);
  void walk(uint32_t begin, uint32_t end, const Places& from, Bits* allowed,
            std::vector<LocalMask::Span>* beyond);
  void walk_alone(uint32_t state, uint32_t begin, uint32_t end, LocalMask* found);
  void allow(uint32_t node, Bits* allowed) const;
  void clear_rest(Bits* bits) const;
  void forget();

  std::shared_ptr<const Constraint> constraint_;
  const Grammar& grammar_;
  std::vector<Frame> frames_;
  std::unordered_map<uint64_t, uint32_t> numbers_;  // of frames_: alike ones are one, or places multiply
  Places now_;
  Bits allowed_;
  std::vector<Frame> seen_, todo_;  // of arrive
  std::vector<Places> path_;        // of walk, by depth
  uint64_t steps_ = 0;
  bool lost_ = false;  // where a text begins takes too many steps already
};

}  // namespace selm::grammar
