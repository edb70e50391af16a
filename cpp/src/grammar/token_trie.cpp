#include "grammar/token_trie.h"

#include <algorithm>
#include <string>
#include <utility>

namespace selm::grammar {

TokenTrie TokenTrie::of(const text::Tokenizer& tokenizer) {
  TokenTrie found;
  std::vector<std::pair<std::string, text::Token>> all;
  for (size_t i = 0; i < tokenizer.size(); ++i) {
    const auto token = static_cast<text::Token>(i);
    if (tokenizer.is_end(token)) {
      found.ends_.push_back(token);
      continue;
    }
    std::string bytes = tokenizer.piece(token, false);
    if (!bytes.empty()) all.emplace_back(std::move(bytes), token);
  }
  std::sort(all.begin(), all.end());
  found.vocabulary_ = tokenizer.size();
  std::vector<uint32_t> path;  // the node of each byte of the last token
  const std::string* last = nullptr;
  const auto close = [&](size_t depth) {  // the nodes below that depth are whole
    for (; path.size() > depth; path.pop_back())
      found.nodes_[path.back()].end = static_cast<uint32_t>(found.nodes_.size());
  };
  for (const auto& [bytes, token] : all) {
    size_t common = 0;
    while (last && common < std::min(last->size(), bytes.size()) && (*last)[common] == bytes[common])
      ++common;
    close(common);
    for (size_t i = common; i < bytes.size(); ++i) {
      path.push_back(static_cast<uint32_t>(found.nodes_.size()));
      found.nodes_.push_back(
          {0, static_cast<uint32_t>(found.tokens_.size()), static_cast<uint8_t>(bytes[i])});
    }
    found.tokens_.push_back(token);
    last = &bytes;
  }
  close(0);
  found.nodes_.push_back({0, static_cast<uint32_t>(found.tokens_.size()), 0});
  return found;
}

}  // namespace selm::grammar
