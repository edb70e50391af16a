// A grammar as one automaton a rule, over bytes, whose states may also call rules.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/automaton.h"

namespace selm::grammar {

inline constexpr size_t kMostStates = 1 << 18;  // of all rules together

struct Grammar {
  struct Edge {
    uint8_t low, high;
    uint32_t to;
  };
  struct Call {
    uint32_t rule, after;  // the state that is gone on with
  };
  struct State {
    uint32_t edges, calls;  // where its own begin; they end where the next state's begin
    bool accepts;
  };
  std::vector<State> states;  // one more than there are
  std::vector<Edge> edges;
  std::vector<Call> calls;
  std::vector<uint32_t> starts;  // of each rule; the text is of rule 0

  size_t size() const { return states.size() - 1; }
  // What it reads the byte by; nullptr where it does not.
  const Edge* edge(uint32_t state, uint8_t byte) const {
    for (uint32_t e = states[state].edges; e < states[state + 1].edges && edges[e].low <= byte; ++e)
      if (byte <= edges[e].high) return &edges[e];
    return nullptr;
  }
  // A state that does nothing but end its rule.
  bool only_ends(uint32_t state) const {
    return states[state].accepts && states[state].edges == states[state + 1].edges &&
           states[state].calls == states[state + 1].calls;
  }
};

// Rules are declared, then defined in any order; the first is the text's.
class Builder {
 public:
  uint32_t declare(std::string name);
  void describe(uint32_t rule, std::string name) { rules_[rule].name = std::move(name); }
  // The symbol of an Nfa's edge that calls the rule.
  static uint32_t call(uint32_t rule) { return kCalls + rule; }
  static Fragment calling(uint32_t rule, Nfa* nfa) { return nfa->one_of({{call(rule), call(rule)}}); }

  // `whole` reads bytes and calls. Errors: unsupported (too large).
  Status define(uint32_t rule, const Nfa& nfa, Fragment whole);

  // Errors: invalid_argument (a rule without a definition, one that begins with itself, nothing that could
  // ever be written).
  Result<Grammar> finish();

 private:
  static constexpr uint32_t kCalls = 0x200000;

  struct Rule {
    std::string name;
    Dfa dfa;
  };
  bool step_alive(uint32_t rule, std::vector<std::vector<bool>>* alive) const;
  std::vector<std::vector<bool>> alive() const;
  Status check_recursion(const Grammar& grammar) const;

  std::vector<Rule> rules_;
  size_t states_ = 0;
};

}  // namespace selm::grammar
