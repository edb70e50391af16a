#include "text/bpe.h"

#include <algorithm>
#include <cinttypes>
#include <functional>
#include <unordered_map>

#include "gguf/gguf.h"

namespace selm::text {

// Printable Latin-1 stands for itself; the other 68 bytes are U+0100 and on, in their order.
uint32_t code_of_byte(uint8_t byte) {
  if (byte <= 0x20) return 0x100u + byte;
  if (byte < 0x7F) return byte;
  if (byte <= 0xA0) return 0x121u + (byte - 0x7Fu);
  return byte == 0xAD ? 0x143u : byte;
}

int byte_of_code(uint32_t code) {
  if (code >= 0x100 && code <= 0x120) return static_cast<int>(code - 0x100);
  if (code >= 0x121 && code <= 0x142) return static_cast<int>(code - 0x121 + 0x7F);
  if (code == 0x143) return 0xAD;
  return code < 0x100 && code_of_byte(static_cast<uint8_t>(code)) == code ? static_cast<int>(code) : -1;
}

std::string bytes_of_text(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    const Utf8Char next = read_utf8(text, offset);
    const int byte = next.valid ? byte_of_code(next.code) : -1;
    if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      bytes.append(text, offset, next.length);
    }
    offset += next.length;
  }
  return bytes;
}

namespace {

// Whether every token that text becomes is one letter, so that there is nothing to merge.
bool only_letters(const Vocabulary& vocabulary) {
  for (size_t i = 0; i < vocabulary.size(); ++i) {
    const auto id = static_cast<Token>(i);
    const std::string_view text = vocabulary.text(id);
    const size_t letter = text.empty() || static_cast<unsigned char>(text[0]) < 0x80 ? 1 : 2;
    if (vocabulary.type(id) == TokenType::normal && text.size() > letter) return false;
  }
  return true;
}

// What merging may end in. Special tokens are cut out beforehand; text never merges into one.
Token find_mergeable(const Vocabulary& vocabulary, std::string_view text) {
  const Token id = vocabulary.find_plain(text);
  return id == kNoToken || vocabulary.type(id) == TokenType::user_defined ? kNoToken : id;
}

}  // namespace

Result<Bpe> Bpe::load(const gguf::File& file, const Vocabulary& vocabulary, const PreTokenizer& rules) {
  const gguf::Entry* merges = file.find("tokenizer.ggml.merges");
  if (merges == nullptr && !only_letters(vocabulary))
    return error(Code::format, "tokenizer.ggml.merges is missing: a gpt2 vocabulary needs it");
  if (merges != nullptr &&
      (!merges->is_array || merges->type != gguf::ValueType::string || merges->count >= INT32_MAX / 4)) {
    return error(Code::format, "at byte %" PRIu64 ": tokenizer.ggml.merges is not an array of strings",
                 merges->offset);
  }
  Bpe bpe;
  bpe.rules_ = &rules;
  bpe.seed_ = hash_seed();

  std::unordered_map<std::string, Token> others;
  const auto symbol_of = [&](std::string_view text) {
    if (const Token id = find_mergeable(vocabulary, text); id != kNoToken) return id;
    const auto next = static_cast<Token>(vocabulary.size() + bpe.others_.size());
    const auto [found, added] = others.try_emplace(std::string(text), next);
    if (added) bpe.others_.emplace_back(text);
    return found->second;
  };

  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string text;
    append_utf8(code_of_byte(static_cast<uint8_t>(byte)), text);
    bpe.byte_symbols_[byte] = symbol_of(text);
  }
  const auto count = static_cast<size_t>(merges == nullptr ? 0 : merges->count);
  bpe.merges_.reserve(count);
  bpe.by_pair_ = HashIndex(count);
  std::string result;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view line = file.string(*merges, i);
    const size_t space = line.find(' ', 1);
    if (space == line.npos || space + 1 == line.size()) {
      return error(Code::format, "tokenizer.ggml.merges: line %zu is not two texts with a space between", i);
    }
    const Token left = symbol_of(line.substr(0, space)), right = symbol_of(line.substr(space + 1));
    result.assign(line, 0, space).append(line, space + 1);
    bpe.merges_.push_back({left, right, symbol_of(result)});
    bpe.by_pair_.insert(bpe.hash_pair(left, right), static_cast<uint32_t>(i), [&](uint32_t other) {
      return bpe.merges_[other].left == left && bpe.merges_[other].right == right;
    });
  }
  if (vocabulary.size() + bpe.others_.size() > INT32_MAX) return error(Code::unsupported, "too many merges");
  return bpe;
}

void Bpe::encode(const Vocabulary& vocabulary, std::string_view text, Token unknown,
                 std::vector<Token>& out) const {
  Scratch scratch;
  size_t begin = 0;
  for (const uint32_t end : split_words(*rules_, text)) {
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (rules_->ignore_merges && whole_word(vocabulary, word, scratch, out)) continue;
    merge_word(word, scratch);
    for (uint32_t i = 0; i != kEnd; i = scratch.symbols[i].next) {
      emit(vocabulary, scratch.symbols[i].id, unknown, out);
    }
  }
}

uint32_t Bpe::rank(Token left, Token right) const {
  return by_pair_.find(hash_pair(left, right),
                       [&](uint32_t i) { return merges_[i].left == left && merges_[i].right == right; });
}

bool Bpe::whole_word(const Vocabulary& vocabulary, std::string_view word, Scratch& scratch,
                     std::vector<Token>& out) const {
  if (word.size() > vocabulary.longest()) return false;
  scratch.text.clear();
  for (const char byte : word) append_utf8(code_of_byte(static_cast<uint8_t>(byte)), scratch.text);
  const Token id = find_mergeable(vocabulary, scratch.text);
  if (id != kNoToken) out.push_back(id);
  return id != kNoToken;
}

// Queues the merge of a symbol with the next one. The smallest number comes first: lowest rank,
// then leftmost.
void Bpe::offer(uint32_t left, Scratch& scratch) const {
  const uint32_t right = scratch.symbols[left].next;
  if (right == kEnd) return;
  const uint32_t found = rank(scratch.symbols[left].id, scratch.symbols[right].id);
  if (found == HashIndex::kNone) return;
  scratch.queue.push_back(static_cast<uint64_t>(found) << 32 | left);
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
}

// Leaves the word's final symbols in a list that begins at 0.
void Bpe::merge_word(std::string_view word, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  symbols.clear();
  scratch.queue.clear();
  const auto count = static_cast<uint32_t>(word.size());
  for (uint32_t i = 0; i < count; ++i) {
    const Token id = byte_symbols_[static_cast<uint8_t>(word[i])];
    symbols.push_back({id, i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1});
  }
  for (uint32_t i = 0; i + 1 < count; ++i) offer(i, scratch);

  while (!scratch.queue.empty()) {
    std::pop_heap(scratch.queue.begin(), scratch.queue.end(), std::greater<>());
    const uint64_t best = scratch.queue.back();
    scratch.queue.pop_back();
    const auto at = static_cast<uint32_t>(best);
    const Merge& merge = merges_[static_cast<size_t>(best >> 32)];
    Symbol& left = symbols[at];
    if (left.id != merge.left || left.next == kEnd || symbols[left.next].id != merge.right)
      continue;  // outdated
    Symbol& right = symbols[left.next];
    left.id = merge.result;
    left.next = right.next;
    right.id = kNoToken;
    if (left.next != kEnd) symbols[left.next].previous = at;
    if (left.previous != kEnd) offer(left.previous, scratch);
    offer(at, scratch);
  }
}

void Bpe::emit(const Vocabulary& vocabulary, Token symbol, Token unknown, std::vector<Token>& out) const {
  if (vocabulary.has(symbol)) {
    out.push_back(symbol);
    return;
  }
  for (const char byte : bytes_of_text(others_[static_cast<size_t>(symbol) - vocabulary.size()])) {
    const Token id = byte_symbols_[static_cast<uint8_t>(byte)];
    const Token found = vocabulary.has(id) ? id : unknown;
    if (found != kNoToken) out.push_back(found);
  }
}

}  // namespace selm::text
