#include "grammar/grammar.h"

#include <algorithm>
#include <utility>

namespace selm::grammar {
namespace {

// Visits each rule, and again those that call one of which visit(rule) found out something.
template <class Visit>
void by_callers(const std::vector<std::vector<uint32_t>>& callers, const Visit& visit) {
  std::vector<uint32_t> rules;
  for (uint32_t rule = 0; rule < callers.size(); ++rule) rules.push_back(rule);
  std::vector<bool> waits(callers.size(), true);
  while (!rules.empty()) {
    const uint32_t rule = rules.back();
    rules.pop_back();
    waits[rule] = false;
    if (!visit(rule)) continue;
    for (const uint32_t caller : callers[rule]) {
      if (!waits[caller]) rules.push_back(caller);
      waits[caller] = true;
    }
  }
}

// Finds rules that come back to themselves before a byte is read.
class Recursion {
 public:
  explicit Recursion(const Grammar& grammar)
      : grammar_(grammar),
        empty_(grammar.size(), false),
        visited_(grammar.starts.size(), 0),
        seen_(grammar.size(), 0) {
    std::vector<std::vector<uint32_t>> callers(grammar.starts.size());
    for (uint32_t rule = 0; rule < callers.size(); ++rule)
      for (uint32_t c = grammar.states[begin(rule)].calls; c < grammar.states[begin(rule + 1)].calls; ++c)
        callers[grammar.calls[c].rule].push_back(rule);
    by_callers(callers, [this](uint32_t rule) {
      const bool before = empty_[begin(rule)];
      while (spread(rule)) {
      }
      return empty_[begin(rule)] != before;
    });
  }

  // The rule that begins with itself, or -1.
  int64_t find() {
    for (uint32_t rule = 0; rule < grammar_.starts.size(); ++rule) {
      const int64_t found = visit(rule);
      if (found >= 0) return found;
    }
    return -1;
  }

 private:
  uint32_t begin(uint32_t rule) const {  // its states; they end where the next rule's begin
    return rule < grammar_.starts.size() ? grammar_.starts[rule] : static_cast<uint32_t>(grammar_.size());
  }

  // Marks the states from which the end of the rule is reached without a byte.
  bool spread(uint32_t rule) {
    bool changed = false;
    for (uint32_t i = begin(rule + 1); i-- > begin(rule);) {
      if (empty_[i]) continue;
      bool now = grammar_.states[i].accepts;
      for (uint32_t c = grammar_.states[i].calls; c < grammar_.states[i + 1].calls && !now; ++c) {
        const Grammar::Call& call = grammar_.calls[c];
        now = empty_[grammar_.starts[call.rule]] && empty_[call.after];
      }
      if (now) empty_[i] = changed = true;
    }
    return changed;
  }

  // Depth first, without the machine's stack: rules may call each other thousands deep.
  int64_t visit(uint32_t root) {
    std::vector<std::pair<uint32_t, std::vector<uint32_t>>> path;
    const auto enter = [&](uint32_t rule) {
      visited_[rule] = 1;
      path.emplace_back(rule, first_called(rule));
    };
    if (visited_[root] == 0) enter(root);
    while (!path.empty()) {
      auto& [rule, rest] = path.back();
      if (rest.empty()) {
        visited_[rule] = 2;
        path.pop_back();
        continue;
      }
      const uint32_t next = rest.back();
      rest.pop_back();
      if (visited_[next] == 1) return next;
      if (visited_[next] == 0) enter(next);
    }
    return -1;
  }

  std::vector<uint32_t> first_called(uint32_t rule) {
    std::vector<uint32_t> found, states = {grammar_.starts[rule]};
    ++round_;
    while (!states.empty()) {
      const uint32_t at = states.back();
      states.pop_back();
      if (std::exchange(seen_[at], round_) == round_) continue;
      for (uint32_t c = grammar_.states[at].calls; c < grammar_.states[at + 1].calls; ++c) {
        found.push_back(grammar_.calls[c].rule);
        if (empty_[grammar_.starts[grammar_.calls[c].rule]]) states.push_back(grammar_.calls[c].after);
      }
    }
    return found;
  }

  const Grammar& grammar_;
  std::vector<bool> empty_;       // of each state
  std::vector<uint8_t> visited_;  // of each rule: 1 on the path, 2 done
  std::vector<uint32_t> seen_;    // of each state: in which round
  uint32_t round_ = 0;
};

}  // namespace

uint32_t Builder::declare(std::string name) {
  rules_.push_back({std::move(name), {}});
  return static_cast<uint32_t>(rules_.size() - 1);
}

Status Builder::define(uint32_t rule, const Nfa& nfa, Fragment whole) {
  SELM_ASSIGN(rules_[rule].dfa, deterministic(nfa, whole, kMostStates));
  states_ += rules_[rule].dfa.states.size();
  if (states_ > kMostStates) {
    return error(Code::unsupported, "the grammar is too large: more than %zu states", kMostStates);
  }
  return {};
}

// Whether more states of a rule turned out to be able to end.
bool Builder::step_alive(uint32_t rule, std::vector<std::vector<bool>>* alive) const {
  const Dfa& dfa = rules_[rule].dfa;
  bool changed = false;
  for (size_t i = dfa.states.size(); i-- > 0;) {
    if ((*alive)[rule][i]) continue;
    bool lives = dfa.states[i].accepts;
    for (const Nfa::Edge& edge : dfa.states[i].edges) {
      if (lives) break;
      if (!(*alive)[rule][edge.to]) continue;
      if (edge.on.low < kCalls) lives = true;
      for (uint32_t call = std::max(edge.on.low, kCalls); call <= edge.on.high && !lives; ++call)
        lives = (*alive)[call - kCalls][0];
    }
    if (lives) (*alive)[rule][i] = changed = true;
  }
  return changed;
}

std::vector<std::vector<bool>> Builder::alive() const {
  std::vector<std::vector<bool>> found;
  for (const Rule& rule : rules_) found.emplace_back(rule.dfa.states.size(), false);
  std::vector<std::vector<uint32_t>> callers(rules_.size());
  for (uint32_t rule = 0; rule < rules_.size(); ++rule)
    for (const Dfa::State& state : rules_[rule].dfa.states)
      for (const Nfa::Edge& edge : state.edges)
        for (uint32_t call = std::max(edge.on.low, kCalls); call <= edge.on.high; ++call)
          callers[call - kCalls].push_back(rule);
  by_callers(callers, [&](uint32_t rule) {
    const bool before = found[rule][0];
    while (step_alive(rule, &found)) {
    }
    return found[rule][0] != before;
  });
  return found;
}

Result<Grammar> Builder::finish() {
  for (const Rule& rule : rules_) {
    if (rule.dfa.states.empty())
      return error(Code::invalid_argument, "the rule %s is used but not defined", rule.name.c_str());
  }
  const std::vector<std::vector<bool>> lives = alive();
  if (rules_.empty() || !lives[0][0])
    return error(Code::invalid_argument, "nothing can be written that the grammar accepts");
  Grammar found;
  std::vector<uint32_t> first;  // state of each rule
  uint32_t count = 0;
  for (const Rule& rule : rules_) {
    first.push_back(count);
    found.starts.push_back(count);
    count += static_cast<uint32_t>(rule.dfa.states.size());
  }
  for (size_t r = 0; r < rules_.size(); ++r) {
    const Dfa& dfa = rules_[r].dfa;
    for (size_t i = 0; i < dfa.states.size(); ++i) {
      found.states.push_back({static_cast<uint32_t>(found.edges.size()),
                              static_cast<uint32_t>(found.calls.size()), dfa.states[i].accepts});
      for (const Nfa::Edge& edge : dfa.states[i].edges) {
        if (!lives[r][edge.to]) continue;
        const uint32_t to = first[r] + edge.to;
        if (edge.on.low < kCalls)
          found.edges.push_back({static_cast<uint8_t>(edge.on.low), static_cast<uint8_t>(edge.on.high), to});
        for (uint32_t call = std::max(edge.on.low, kCalls); call <= edge.on.high; ++call)
          if (lives[call - kCalls][0]) found.calls.push_back({call - kCalls, to});
      }
    }
  }
  found.states.push_back(
      {static_cast<uint32_t>(found.edges.size()), static_cast<uint32_t>(found.calls.size()), false});
  SELM_TRY(check_recursion(found));
  return found;
}

Status Builder::check_recursion(const Grammar& grammar) const {
  const int64_t rule = Recursion(grammar).find();
  if (rule < 0) return {};
  return error(Code::invalid_argument, "the rule %s begins with itself: no text would ever be read",
               rules_[static_cast<size_t>(rule)].name.c_str());
}

}  // namespace selm::grammar
