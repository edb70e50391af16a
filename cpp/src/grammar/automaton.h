// Finite automata over numbers: code points of a string, bytes of a text, or calls of rules.
//
// A regular expression or a rule is put together as an Nfa of fragments (Thompson, 1968), then made
// deterministic. Labels are ranges of numbers, so that [^"] is one edge and not a million.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace selm::grammar {

inline constexpr uint32_t kLastCodePoint = 0x10FFFF;

struct Range {
  uint32_t low, high;  // both belong to it
  bool operator==(const Range&) const = default;
};
using Ranges = std::vector<Range>;

Ranges normalised(Ranges ranges);  // sorted, joined, without overlap
// All code points that are not in it; surrogates, which no UTF-8 holds, are in neither.
Ranges complement(const Ranges& ranges);

// What a fragment of an Nfa leads from and to.
struct Fragment {
  uint32_t from, to;
};

class Nfa {
 public:
  struct Edge {
    Range on;
    uint32_t to;
  };
  struct State {
    std::vector<Edge> edges;
    std::vector<uint32_t> empty;  // reached without reading
  };

  uint32_t add();  // a state
  void edge(uint32_t from, Range on, uint32_t to) { states_[from].edges.push_back({on, to}); }
  void empty(uint32_t from, uint32_t to) { states_[from].empty.push_back(to); }

  Fragment nothing();
  Fragment one_of(const Ranges& ranges);
  Fragment literal(std::string_view bytes);
  Fragment then(Fragment first, Fragment second);
  Fragment either(const std::vector<Fragment>& alternatives);  // nothing can be read where there is none
  Fragment maybe(Fragment fragment);
  Fragment any_number(Fragment fragment);  // none too
  // `least` times, and up to `most`, where there is one; `again` makes another fragment of the same. What may
  // be left out leads straight to the end: a chain of choices would be walked again from each of its links.
  template <class Again>
  Result<Fragment> repeated(uint32_t least, std::optional<uint32_t> most, const Again& again) {
    Fragment found = nothing();
    const uint32_t end = add();
    for (uint32_t i = 0; i < most.value_or(least + 1); ++i) {
      if (i >= least) empty(found.to, end);
      SELM_ASSIGN(const Fragment one, again());
      found = then(found, most || i < least ? one : any_number(one));
    }
    empty(found.to, end);
    return Fragment{found.from, end};
  }

  const std::vector<State>& states() const { return states_; }
  size_t size() const { return states_.size(); }

 private:
  std::vector<State> states_;
};

// State 0 is the start. Of every state the edges are sorted and without overlap, and an accepting state can
// be reached, but for an automaton that accepts nothing: a single state without edges.
class Dfa {
 public:
  struct State {
    std::vector<Nfa::Edge> edges;
    bool accepts = false;
  };
  std::vector<State> states;

  bool accepts_nothing() const { return states.size() == 1 && !states[0].accepts && states[0].edges.empty(); }
  // The state after `symbol`, or -1.
  int64_t step(uint32_t state, uint32_t symbol) const;
};

// Error: unsupported, where it takes more states than `limit`. `free`: a state after which anything is
// accepted, so that it does not matter which others are reached with it.
Result<Dfa> deterministic(const Nfa& nfa, Fragment whole, size_t limit, std::optional<uint32_t> free = {});
// What both accept.
Result<Dfa> both(const Dfa& one, const Dfa& other, size_t limit);
// All strings of code points that it does not accept.
Dfa inverted(const Dfa& code_points);
// A copy of the automaton as a fragment.
Fragment copied(const Dfa& dfa, Nfa* nfa);

}  // namespace selm::grammar
