#include "grammar/automaton.h"

#include <algorithm>
#include <map>
#include <utility>

namespace selm::grammar {
namespace {

constexpr size_t kMostWork = 4'000'000;
constexpr Range kSurrogates = {0xD800, 0xDFFF};

Status too_large(size_t limit) {
  return error(Code::unsupported, "the grammar is too large: an automaton of more than %zu states", limit);
}

// Finds the states reached without reading.
class Closure {
 public:
  explicit Closure(const Nfa& nfa) : nfa_(nfa), seen_(nfa.size(), 0) {}

  std::vector<uint32_t> of(std::vector<uint32_t> reached) {  // sorted
    ++round_;
    std::vector<uint32_t> found;
    while (!reached.empty()) {
      const uint32_t at = reached.back();
      reached.pop_back();
      if (std::exchange(seen_[at], round_) == round_) continue;
      found.push_back(at);
      const std::vector<uint32_t>& next = nfa_.states()[at].empty;
      reached.insert(reached.end(), next.begin(), next.end());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  const Nfa& nfa_;
  std::vector<uint32_t> seen_;  // in which round
  uint32_t round_ = 0;
};

// Calls visit(range, targets) for each longest range of symbols that leads to the same set of states.
template <class Visit>
void by_symbol(const std::vector<Nfa::Edge>& edges, const Visit& visit) {
  std::vector<uint32_t> cuts;
  for (const Nfa::Edge& edge : edges) {
    cuts.push_back(edge.on.low);
    cuts.push_back(edge.on.high + 1);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    std::vector<uint32_t> to;
    for (const Nfa::Edge& edge : edges)
      if (edge.on.low <= cuts[i] && cuts[i] <= edge.on.high) to.push_back(edge.to);
    if (!to.empty()) visit(Range{cuts[i], cuts[i + 1] - 1}, std::move(to));
  }
}

void add_edge(Dfa::State* state, Range on, uint32_t to) {
  if (!state->edges.empty()) {
    Nfa::Edge& last = state->edges.back();
    if (last.to == to && last.on.high + 1 == on.low) {
      last.on.high = on.high;
      return;
    }
  }
  state->edges.push_back({on, to});
}

// Without the states from which nothing is ever accepted.
Dfa trimmed(const Dfa& dfa) {
  const size_t n = dfa.states.size();
  std::vector<std::vector<uint32_t>> into(n);
  std::vector<uint32_t> alive;
  std::vector<bool> lives(n, false);
  for (uint32_t i = 0; i < n; ++i) {
    for (const Nfa::Edge& edge : dfa.states[i].edges) into[edge.to].push_back(i);
    if (dfa.states[i].accepts) alive.push_back(i);
  }
  while (!alive.empty()) {
    const uint32_t at = alive.back();
    alive.pop_back();
    if (lives[at]) continue;
    lives[at] = true;
    alive.insert(alive.end(), into[at].begin(), into[at].end());
  }
  std::vector<uint32_t> number(n, 0);
  Dfa found;
  for (uint32_t i = 0; i < n; ++i) {
    if (!lives[i] && i != 0) continue;
    number[i] = static_cast<uint32_t>(found.states.size());
    found.states.push_back({{}, dfa.states[i].accepts});
  }
  for (uint32_t i = 0; i < n; ++i) {
    if (!lives[i]) continue;
    for (const Nfa::Edge& edge : dfa.states[i].edges)
      if (lives[edge.to]) add_edge(&found.states[number[i]], edge.on, number[edge.to]);
  }
  return found;
}

}  // namespace

Ranges normalised(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end(), [](Range a, Range b) { return a.low < b.low; });
  Ranges found;
  for (const Range& range : ranges) {
    if (range.high < range.low) continue;
    if (!found.empty() && range.low <= found.back().high + 1)
      found.back().high = std::max(found.back().high, range.high);
    else
      found.push_back(range);
  }
  return found;
}

Ranges complement(const Ranges& ranges) {
  Ranges taken = ranges;
  taken.push_back(kSurrogates);
  Ranges found;
  uint32_t next = 0;
  for (const Range& range : normalised(std::move(taken))) {
    if (range.low > next) found.push_back({next, range.low - 1});
    next = range.high + 1;
  }
  if (next <= kLastCodePoint) found.push_back({next, kLastCodePoint});
  return found;
}

uint32_t Nfa::add() {
  states_.emplace_back();
  return static_cast<uint32_t>(states_.size() - 1);
}

Fragment Nfa::nothing() {
  const uint32_t state = add();
  return {state, state};
}

Fragment Nfa::one_of(const Ranges& ranges) {
  const uint32_t from = add(), to = add();
  for (const Range& range : ranges) edge(from, range, to);
  return {from, to};
}

Fragment Nfa::literal(std::string_view bytes) {
  Fragment found = nothing();
  for (const char byte : bytes) {
    const auto value = static_cast<uint32_t>(static_cast<unsigned char>(byte));
    const uint32_t next = add();
    edge(found.to, {value, value}, next);
    found.to = next;
  }
  return found;
}

Fragment Nfa::then(Fragment first, Fragment second) {
  empty(first.to, second.from);
  return {first.from, second.to};
}

Fragment Nfa::either(const std::vector<Fragment>& alternatives) {
  const uint32_t from = add(), to = add();
  for (const Fragment& each : alternatives) {
    empty(from, each.from);
    empty(each.to, to);
  }
  return {from, to};
}

Fragment Nfa::maybe(Fragment fragment) { return either({fragment, nothing()}); }

Fragment Nfa::any_number(Fragment fragment) {
  const uint32_t middle = add();
  empty(middle, fragment.from);
  empty(fragment.to, middle);
  return {middle, middle};
}

int64_t Dfa::step(uint32_t state, uint32_t symbol) const {
  const std::vector<Nfa::Edge>& edges = states[state].edges;
  const auto after = std::upper_bound(edges.begin(), edges.end(), symbol,
                                      [](uint32_t s, const Nfa::Edge& edge) { return s < edge.on.low; });
  if (after == edges.begin() || symbol > (after - 1)->on.high) return -1;
  return (after - 1)->to;
}

Result<Dfa> deterministic(const Nfa& nfa, Fragment whole, size_t limit, std::optional<uint32_t> free) {
  Dfa found;
  Closure closure(nfa);
  size_t work = 0;  // states of all sets: of one that repeats what repeats, far more than there are sets
  std::map<std::vector<uint32_t>, uint32_t> numbers;
  std::vector<const std::vector<uint32_t>*> sets;
  const auto number_of = [&](std::vector<uint32_t> set) {
    work += set.size();
    if (free && std::binary_search(set.begin(), set.end(), *free)) set = closure.of({*free});
    const auto [at, fresh] = numbers.emplace(std::move(set), static_cast<uint32_t>(sets.size()));
    if (fresh) {
      sets.push_back(&at->first);
      found.states.push_back({{}, std::binary_search(at->first.begin(), at->first.end(), whole.to)});
    }
    return at->second;
  };
  number_of(closure.of({whole.from}));
  for (uint32_t i = 0; i < sets.size(); ++i) {
    if (sets.size() > limit) return too_large(limit);
    if (work > kMostWork) return too_large(kMostWork);
    std::vector<Nfa::Edge> edges;
    for (const uint32_t state : *sets[i]) {
      const std::vector<Nfa::Edge>& more = nfa.states()[state].edges;
      edges.insert(edges.end(), more.begin(), more.end());
    }
    by_symbol(edges, [&](Range on, std::vector<uint32_t> to) {
      const uint32_t target = number_of(closure.of(std::move(to)));
      add_edge(&found.states[i], on, target);
    });
  }
  return trimmed(found);
}

Result<Dfa> both(const Dfa& one, const Dfa& other, size_t limit) {
  Dfa found;
  std::map<std::pair<uint32_t, uint32_t>, uint32_t> numbers;
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  const auto number_of = [&](uint32_t a, uint32_t b) {
    const auto [at, fresh] = numbers.emplace(std::pair(a, b), static_cast<uint32_t>(pairs.size()));
    if (fresh) {
      pairs.emplace_back(a, b);
      found.states.push_back({{}, one.states[a].accepts && other.states[b].accepts});
    }
    return at->second;
  };
  number_of(0, 0);
  for (uint32_t i = 0; i < pairs.size(); ++i) {
    if (pairs.size() > limit) return too_large(limit);
    const auto [a, b] = pairs[i];
    for (const Nfa::Edge& x : one.states[a].edges) {
      for (const Nfa::Edge& y : other.states[b].edges) {
        const Range on = {std::max(x.on.low, y.on.low), std::min(x.on.high, y.on.high)};
        if (on.low > on.high) continue;
        const uint32_t target = number_of(x.to, y.to);
        add_edge(&found.states[i], on, target);
      }
    }
  }
  return trimmed(found);
}

Dfa inverted(const Dfa& code_points) {
  Dfa found = code_points;
  const auto rest = static_cast<uint32_t>(found.states.size());  // where what it cannot read leads
  for (Dfa::State& state : found.states) {
    state.accepts = !state.accepts;
    Ranges read;
    for (const Nfa::Edge& edge : state.edges) read.push_back(edge.on);
    for (const Range& range : complement(read)) state.edges.push_back({range, rest});
    std::sort(state.edges.begin(), state.edges.end(),
              [](const Nfa::Edge& a, const Nfa::Edge& b) { return a.on.low < b.on.low; });
  }
  found.states.push_back({{}, true});
  for (const Range& range : complement({})) found.states[rest].edges.push_back({range, rest});
  return trimmed(found);
}

Fragment copied(const Dfa& dfa, Nfa* nfa) {
  std::vector<uint32_t> at(dfa.states.size());
  for (uint32_t& state : at) state = nfa->add();
  const uint32_t end = nfa->add();
  for (size_t i = 0; i < dfa.states.size(); ++i) {
    for (const Nfa::Edge& edge : dfa.states[i].edges) nfa->edge(at[i], edge.on, at[edge.to]);
    if (dfa.states[i].accepts) nfa->empty(at[i], end);
  }
  return {at[0], end};
}

}  // namespace selm::grammar
