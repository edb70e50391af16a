#include "grammar/token_trie.h"

#include <algorithm>
#include <string>
#include <utility>

namespace selm::grammar {
namespace {

constexpr size_t kLongest = 0xFFFF;  // of tokens that may be written at all

}  // namespace

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
    if (bytes.empty() || bytes.size() > kLongest) continue;
    found.longest_ = std::max(found.longest_, bytes.size());
    all.emplace_back(std::move(bytes), token);
  }
  const auto is_long = [](const std::string& bytes) { return bytes.size() > kShort; };
  std::sort(all.begin(), all.end());
  std::stable_partition(all.begin(), all.end(), [&](const auto& one) { return !is_long(one.first); });
  found.vocabulary_ = tokenizer.size();
  std::vector<uint32_t> path;  // the node of each byte of the last token
  const std::string* last = nullptr;
  const auto close = [&](size_t depth) {  // the nodes below that depth are whole
    for (; path.size() > depth; path.pop_back())
      found.nodes_[path.back()].end = static_cast<uint32_t>(found.nodes_.size());
  };
  for (const auto& [bytes, token] : all) {
    size_t common = 0;
    if (last && is_long(*last) != is_long(bytes)) {
      close(0);
      found.short_size_ = static_cast<uint32_t>(found.nodes_.size());
      last = nullptr;
    }
    while (last && common < std::min(last->size(), bytes.size()) && (*last)[common] == bytes[common])
      ++common;
    close(common);
    for (size_t i = common; i < bytes.size(); ++i) {
      path.push_back(static_cast<uint32_t>(found.nodes_.size()));
      found.nodes_.push_back({0, static_cast<uint32_t>(found.tokens_.size()),
                              static_cast<uint32_t>(found.vocabulary_), static_cast<uint16_t>(i),
                              static_cast<uint8_t>(bytes[i]), false});
    }
    TokenTrie::Node& node = found.nodes_[path.back()];
    if (node.first == found.vocabulary_)
      node.first = static_cast<uint32_t>(token);
    else
      node.several = true;
    found.tokens_.push_back(token);
    last = &bytes;
  }
  close(0);
  if (last == nullptr || !is_long(*last)) found.short_size_ = static_cast<uint32_t>(found.nodes_.size());
  found.nodes_.push_back({0, static_cast<uint32_t>(found.tokens_.size()), 0, 0, 0, false});
  return found;
}

}  // namespace selm::grammar
