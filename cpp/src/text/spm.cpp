#include "text/spm.h"

#include <algorithm>

#include "text/unicode.h"

namespace selm::text {
namespace {

constexpr std::string_view kSpace = "\u2581";
constexpr uint32_t kEnd = UINT32_MAX;

// A stretch of the text; empty once merged into the one before.
struct Symbol {
  uint32_t begin, size;
  uint32_t previous, next;
};

struct Candidate {
  float score;
  uint32_t left;  // symbol
  uint32_t size;  // of both together: outdated when they have grown
};
// For a heap whose top is the highest score, then the leftmost.
bool comes_later(const Candidate& a, const Candidate& b) {
  return a.score < b.score || (a.score == b.score && a.left > b.left);
}

class Merger {
 public:
  Merger(const Vocabulary& vocabulary, std::string_view text) : vocabulary_(vocabulary), text_(text) {
    for (size_t offset = 0; offset < text.size();) {
      const Utf8Char next = read_utf8(text, offset);
      const uint32_t size = next.valid ? next.length : 1;
      const auto i = static_cast<uint32_t>(symbols_.size());
      symbols_.push_back({static_cast<uint32_t>(offset), size, i == 0 ? kEnd : i - 1, i + 1});
      offset += size;
    }
    if (!symbols_.empty()) symbols_.back().next = kEnd;
  }

  // Calls visit(text of a symbol) for each that is left, in order.
  template <class Visit>
  void run(Visit visit) {
    for (uint32_t i = 0; i < symbols_.size(); ++i) offer(i);
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), comes_later);
      const Candidate best = queue_.back();
      queue_.pop_back();
      Symbol& left = symbols_[best.left];
      if (left.size == 0 || left.next == kEnd || left.size + symbols_[left.next].size != best.size) continue;
      Symbol& right = symbols_[left.next];
      left.size = best.size;
      left.next = right.next;
      right.size = 0;
      if (left.next != kEnd) symbols_[left.next].previous = best.left;
      if (left.previous != kEnd) offer(left.previous);
      offer(best.left);
    }
    for (uint32_t i = 0; i < symbols_.size(); i = symbols_[i].next) {
      visit(text_.substr(symbols_[i].begin, symbols_[i].size));
    }
  }

 private:
  void offer(uint32_t left) {
    const Symbol& symbol = symbols_[left];
    if (symbol.next == kEnd) return;
    const uint32_t size = symbol.size + symbols_[symbol.next].size;
    if (size > vocabulary_.longest()) return;
    const Token id = vocabulary_.find_plain(text_.substr(symbol.begin, size));
    if (id == kNoToken) return;
    queue_.push_back({vocabulary_.score(id), left, size});
    std::push_heap(queue_.begin(), queue_.end(), comes_later);
  }

  const Vocabulary& vocabulary_;
  std::string_view text_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;
};

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != text.npos; at = found + from.size()) {
    out.append(text, at, found - at).append(to);
  }
  return out.append(text, at);
}

}  // namespace

std::string escape_spaces(std::string_view text) { return replaced(text, " ", kSpace); }
std::string unescape_spaces(std::string_view text) { return replaced(text, kSpace, " "); }

Spm::Spm(const Vocabulary& vocabulary) {
  std::fill(std::begin(byte_tokens_), std::end(byte_tokens_), kNoToken);
  for (Token id = 0; vocabulary.has(id); ++id) {
    if (vocabulary.type(id) != TokenType::byte) continue;
    Token& slot = byte_tokens_[byte_of_text(vocabulary.text(id))];
    if (slot == kNoToken) slot = id;
  }
}

void Spm::encode(const Vocabulary& vocabulary, std::string_view text, Token unknown,
                 std::vector<Token>& out) const {
  Merger(vocabulary, text).run([&](std::string_view symbol) {
    if (const Token id = vocabulary.find_plain(symbol); id != kNoToken) {
      out.push_back(id);
      return;
    }
    bool lost = false;
    for (const char byte : symbol) {
      const Token id = byte_tokens_[static_cast<uint8_t>(byte)];
      if (id != kNoToken) out.push_back(id);
      lost = lost || id == kNoToken;
    }
    if (lost && unknown != kNoToken) out.push_back(unknown);
  });
}

}  // namespace selm::text
