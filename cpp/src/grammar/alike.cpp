#include "grammar/alike.h"

#include <algorithm>
#include <numeric>
#include <span>

namespace selm::grammar {
namespace {

constexpr size_t kMostWork = 1 << 22;  // numbers compared, about

// Classes of states, made finer by one byte at a time (Moore, 1956). Only a state that leads into a class
// which was split can leave its own, so a round after the first looks at few.
class Classes {
 public:
  explicit Classes(const Grammar& grammar)
      : grammar_(grammar), class_(grammar.size(), 0), sizes_(1, static_cast<uint32_t>(grammar.size())) {
    begins_.assign(grammar.size() + 1, 0);
    for (const Grammar::Edge& edge : grammar.edges) ++begins_[edge.to + 1];
    std::partial_sum(begins_.begin(), begins_.end(), begins_.begin());
    sources_.resize(grammar.edges.size());
    std::vector<uint32_t> at(begins_.begin(), begins_.end() - 1);
    for (uint32_t state = 0; state < grammar.size(); ++state)
      for (uint32_t e = grammar.states[state].edges; e < grammar.states[state + 1].edges; ++e)
        sources_[at[grammar.edges[e].to]++] = state;
    touched_.resize(grammar.size());
    std::iota(touched_.begin(), touched_.end(), 0u);
  }

  bool stable() const { return touched_.empty(); }
  const std::vector<uint32_t>& classes() const { return class_; }

  // False where it was too much.
  bool refine() {
    if (!describe()) return false;
    std::vector<uint32_t> order(touched_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) { return compare(a, b) < 0; });
    std::vector<uint32_t> changed;
    for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
      const uint32_t old = class_[touched_[order[begin]]];
      while (end < order.size() && class_[touched_[order[end]]] == old) ++end;
      split(std::span(order).subspan(begin, end - begin), old, &changed);
    }
    touch_sources(changed);
    return true;
  }

 private:
  // What each touched state reads, and the classes that it leads to.
  bool describe() {
    words_.clear();
    word_begins_.assign(1, 0);
    for (const uint32_t i : touched_) {
      const Grammar::State &state = grammar_.states[i], &next = grammar_.states[i + 1];
      words_.push_back((next.calls - state.calls) << 1 | (state.accepts ? 1 : 0));
      for (uint32_t c = state.calls; c < next.calls; ++c)
        words_.insert(words_.end(), {grammar_.calls[c].rule, grammar_.calls[c].after});
      for (uint32_t e = state.edges; e < next.edges; ++e) {
        const Grammar::Edge& edge = grammar_.edges[e];
        words_.insert(words_.end(), {uint32_t{edge.low} << 8 | edge.high, class_[edge.to]});
      }
      word_begins_.push_back(words_.size());
      if (words_.size() > kMostWork - work_) return false;
    }
    work_ += words_.size();
    return true;
  }
  std::span<const uint32_t> words(uint32_t i) const {
    return std::span(words_).subspan(word_begins_[i], word_begins_[i + 1] - word_begins_[i]);
  }
  int compare(uint32_t a, uint32_t b) const {  // of touched_
    const uint32_t in_a = class_[touched_[a]], in_b = class_[touched_[b]];
    if (in_a != in_b) return in_a < in_b ? -1 : 1;
    const std::span<const uint32_t> one = words(a), other = words(b);
    const auto [x, y] = std::mismatch(one.begin(), one.end(), other.begin(), other.end());
    if (x == one.end() || y == other.end()) return (x != one.end()) - (y != other.end());
    return *x < *y ? -1 : 1;
  }

  // Touched states of one class, in order. Those that nothing touched stay in it, else its largest group.
  void split(std::span<const uint32_t> members, uint32_t old, std::vector<uint32_t>* changed) {
    struct Group {
      size_t begin, end;
    };
    std::vector<Group> groups;
    for (size_t i = 0; i < members.size(); ++i) {
      if (i == 0 || compare(members[i - 1], members[i]) != 0) groups.push_back({i, i});
      groups.back().end = i + 1;
    }
    if (members.size() == sizes_[old]) {
      const auto largest = std::max_element(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
        return a.end - a.begin < b.end - b.begin;
      });
      groups.erase(largest);
    }
    for (const Group& group : groups) {
      const auto fresh = static_cast<uint32_t>(sizes_.size());
      const auto size = static_cast<uint32_t>(group.end - group.begin);
      sizes_.push_back(size);
      sizes_[old] -= size;
      for (const uint32_t member : members.subspan(group.begin, size)) {
        class_[touched_[member]] = fresh;
        changed->push_back(touched_[member]);
      }
    }
  }

  void touch_sources(const std::vector<uint32_t>& changed) {
    touched_.clear();
    for (const uint32_t state : changed)
      touched_.insert(touched_.end(), sources_.begin() + begins_[state],
                      sources_.begin() + begins_[state + 1]);
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
  }

  const Grammar& grammar_;
  std::vector<uint32_t> class_, sizes_;     // of each state; of each class
  std::vector<uint32_t> sources_, begins_;  // the states that lead to each; where its own begin
  std::vector<uint32_t> touched_;
  std::vector<uint32_t> words_;
  std::vector<size_t> word_begins_;
  size_t work_ = 0;
};

}  // namespace

std::vector<uint32_t> alike(const Grammar& grammar, uint32_t bytes) {
  std::vector<uint32_t> found(grammar.size());
  std::iota(found.begin(), found.end(), 0u);
  Classes classes(grammar);
  for (uint32_t byte = 0; byte < bytes && !classes.stable(); ++byte)
    if (!classes.refine()) return found;
  std::vector<uint32_t> first(grammar.size(), ~0u);  // of each class
  for (uint32_t state = 0; state < grammar.size(); ++state) {
    uint32_t& representative = first[classes.classes()[state]];
    representative = std::min(representative, state);
    found[state] = representative;
  }
  return found;
}

}  // namespace selm::grammar
