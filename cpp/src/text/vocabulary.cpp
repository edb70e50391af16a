#include "text/vocabulary.h"

#include <chrono>
#include <cinttypes>
#include <cmath>

#include "gguf/gguf.h"

namespace selm::text {
namespace {

// Splitting a text compares it with whole tokens, so their length bounds that time.
constexpr size_t kMostTokenBytes = size_t{64} << 10;

}  // namespace

uint64_t hash_seed() {
  const int here = 0;  // its address differs from run to run
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return mix(static_cast<uint64_t>(now) ^ mix(reinterpret_cast<uintptr_t>(&here)));
}

int byte_of_text(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

Result<Vocabulary> Vocabulary::load(const gguf::File& file, bool spm) {
  Vocabulary vocabulary;
  SELM_TRY(vocabulary.read_texts(file));
  SELM_TRY(vocabulary.read_types(file, spm));
  SELM_TRY(vocabulary.read_scores(file));
  return vocabulary;
}

Token Vocabulary::find(std::string_view text) const {
  const uint32_t found = by_text_.find(hash_bytes(text, seed_), [&](uint32_t position) {
    return this->text(static_cast<Token>(position)) == text;
  });
  return found == HashIndex::kNone ? kNoToken : static_cast<Token>(found);
}

Token Vocabulary::find_plain(std::string_view text) const {
  const Token id = find(text);
  if (id == kNoToken) return kNoToken;
  const TokenType kind = type(id);
  const bool hidden = kind == TokenType::control || kind == TokenType::unknown || kind == TokenType::byte;
  return hidden ? kNoToken : id;
}

Status Vocabulary::read_texts(const gguf::File& file) {
  const gguf::Entry* tokens = file.find("tokenizer.ggml.tokens");
  if (tokens == nullptr) return error(Code::format, "tokenizer.ggml.tokens is missing: no vocabulary");
  if (!tokens->is_array || tokens->type != gguf::ValueType::string) {
    return error(Code::format, "at byte %" PRIu64 ": tokenizer.ggml.tokens is not an array of strings",
                 tokens->offset);
  }
  if (tokens->count == 0 || tokens->count >= INT32_MAX) {
    return error(Code::format, "at byte %" PRIu64 ": tokenizer.ggml.tokens has %" PRIu64 " tokens",
                 tokens->offset, tokens->count);
  }
  const auto count = static_cast<size_t>(tokens->count);
  seed_ = hash_seed();
  by_text_ = HashIndex(count);
  ends_.reserve(count + 1);
  ends_.push_back(0);
  types_.assign(count, TokenType::normal);
  for (size_t i = 0; i < count; ++i) {
    const std::string_view text = file.string(*tokens, i);
    if (text.size() > kMostTokenBytes) {
      return error(Code::unsupported, "tokenizer.ggml.tokens: token %zu has %zu bytes; at most %zu are taken",
                   i, text.size(), kMostTokenBytes);
    }
    texts_.append(text);
    ends_.push_back(static_cast<uint32_t>(texts_.size()));
    longest_ = text.size() > longest_ ? text.size() : longest_;
    if (text.empty()) continue;
    by_text_.insert(hash_bytes(text, seed_), static_cast<uint32_t>(i),
                    [&](uint32_t position) { return this->text(static_cast<Token>(position)) == text; });
  }
  return {};
}

Status Vocabulary::read_types(const gguf::File& file, bool spm) {
  const gguf::Entry* types = file.find("tokenizer.ggml.token_type");
  if (types == nullptr) {
    for (Token id = 0; spm && has(id); ++id) {
      if (byte_of_text(text(id)) >= 0) set_type(id, TokenType::byte);
    }
    return {};
  }
  if (!types->is_array || !gguf::is_integer(types->type) || types->count != size()) {
    return error(Code::format,
                 "at byte %" PRIu64
                 ": tokenizer.ggml.token_type is not an array of %zu integers, one for each token",
                 types->offset, size());
  }
  for (size_t i = 0; i < size(); ++i) {
    const auto id = static_cast<Token>(i);
    const int64_t type = file.int_at(*types, i);
    if (type < 0 || type > static_cast<int64_t>(TokenType::byte)) {
      return error(Code::format, "tokenizer.ggml.token_type: token %zu has type %" PRId64 ", not 1 to 6", i,
                   type);
    }
    set_type(id, type == 0 ? TokenType::unused : static_cast<TokenType>(type));  // 0: undefined
    if (types_[i] == TokenType::byte && byte_of_text(text(id)) < 0) {
      return error(Code::format,
                   "tokenizer.ggml.tokens: token %zu has type byte, but its text is not <0x00> to <0xFF>", i);
    }
  }
  return {};
}

Status Vocabulary::read_scores(const gguf::File& file) {
  const gguf::Entry* scores = file.find("tokenizer.ggml.scores");
  if (scores == nullptr) return {};
  if (!scores->is_array || scores->type != gguf::ValueType::f32 || scores->count != size()) {
    return error(Code::format,
                 "at byte %" PRIu64 ": tokenizer.ggml.scores is not an array of %zu f32, one for each token",
                 scores->offset, size());
  }
  scores_.reserve(size());
  for (size_t i = 0; i < size(); ++i) {
    const double score = file.float_at(*scores, i);
    if (std::isnan(score))
      return error(Code::format, "tokenizer.ggml.scores: token %zu has no number (NaN)", i);
    scores_.push_back(static_cast<float>(score));
  }
  return {};
}

}  // namespace selm::text
