// The tokens of a vocabulary by their bytes, so that what tokens have in common is looked at once.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"

namespace selm::grammar {

// Nodes stand in depth-first order: the children of node i, and theirs, are those from i + 1 until `end`.
// The few long tokens have nodes of their own after all others, as there are two tries in one.
// Control tokens and those without bytes are not in it.
class TokenTrie {
 public:
  static constexpr uint32_t kShort = 16;  // bytes: two tokens in a hundred are longer

  struct Node {
    uint32_t end;
    uint32_t tokens;  // where its own begin in `tokens`; they end where the next node's begin
    uint32_t first;   // of its own; where it has none, the number after the last token
    uint16_t depth;   // how many bytes lead to its parent
    uint8_t byte;
    bool several;  // tokens of these bytes
  };

  static TokenTrie of(const text::Tokenizer& tokenizer);

  uint32_t size() const { return static_cast<uint32_t>(nodes_.size() - 1); }
  uint32_t short_size() const { return short_size_; }  // the nodes of tokens of up to kShort bytes
  const Node& node(uint32_t i) const { return nodes_[i]; }
  // Calls visit(token) for the tokens whose bytes end at node i.
  template <class Visit>
  void tokens_at(uint32_t i, const Visit& visit) const {
    for (uint32_t t = nodes_[i].tokens; t < nodes_[i + 1].tokens; ++t) visit(tokens_[t]);
  }
  size_t vocabulary() const { return vocabulary_; }
  size_t longest() const { return longest_; }                     // token, in bytes
  const std::vector<text::Token>& ends() const { return ends_; }  // that end a generation

 private:
  std::vector<Node> nodes_;  // and one more
  std::vector<text::Token> tokens_, ends_;
  size_t vocabulary_ = 0, longest_ = 0;
  uint32_t short_size_ = 0;
};

}  // namespace selm::grammar
