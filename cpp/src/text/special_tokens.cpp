#include "text/special_tokens.h"

#include <algorithm>
#include <cinttypes>

#include "gguf/gguf.h"

namespace selm::text {
namespace {

// Spellings that end a turn or a text, the likelier end of a turn first. `certain` ones mean that
// and nothing else, whatever type the file gives them; the others only as control tokens.
struct Spelling {
  std::string_view text;
  bool turn;
  bool certain;
};
constexpr Spelling kEnds[] = {
    {"<|eot_id|>", true, true},
    {"<|im_end|>", true, true},
    {"<|end|>", true, true},
    {"<end_of_turn>", true, true},
    {"<end_of_utterance>", true, true},
    {"<|endoftext|>", true, true},
    {"<|end_of_text|>", true, true},
    {"<\uFF5Cend\u2581of\u2581sentence\uFF5C>", true, true},
    {"<EOT>", true, false},
    {"_<EOT>", true, false},
    {"[EOT]", true, false},
    {"<|eom_id|>", false, true},
    {"</s>", false, false},
    {"<eos>", false, false},
    {"[EOS]", false, false},
    {"<|return|>", false, false},
    {"<|fim_pad|>", false, false},
    {"<|repo_name|>", false, false},
    {"<|file_sep|>", false, false},
};

// The id under a key, `fallback` where the key is missing; kNoToken where it says none.
Result<Token> read_id(const gguf::File& file, const char* key, Token fallback, bool needed,
                      const Vocabulary& vocabulary) {
  const gguf::Entry* entry = file.find(key);
  if (entry == nullptr) return vocabulary.has(fallback) ? fallback : kNoToken;
  SELM_ASSIGN(const std::optional<int64_t> value, file.get_int(key));
  const int64_t id = *value;
  if (id >= 0 && static_cast<uint64_t>(id) < vocabulary.size()) return static_cast<Token>(id);
  if (id == -1 || id == UINT32_MAX || !needed) return kNoToken;
  return error(Code::format, "at byte %" PRIu64 ": %s is %" PRId64 ", but there are %zu tokens",
               entry->offset, key, id, vocabulary.size());
}

// Whether to add a token at the begin or end of a text.
Result<bool> read_add(const gguf::File& file, const char* key, bool fallback, Token id) {
  SELM_ASSIGN(const std::optional<bool> asked, file.get_bool(key));
  if (asked.value_or(false) && id == kNoToken) {
    return error(Code::format, "%s is true, but the file names no such token", key);
  }
  return asked.value_or(fallback) && id != kNoToken;
}

Status read_ids(const gguf::File& file, bool spm, const Vocabulary& vocabulary, SpecialTokens& tokens) {
  const auto read = [&](const char* key, Token fallback, bool needed, Token& id) -> Status {
    SELM_ASSIGN(id, read_id(file, key, spm ? fallback : kNoToken, needed, vocabulary));
    return {};
  };
  SELM_TRY(read("tokenizer.ggml.bos_token_id", 1, true, tokens.bos));
  SELM_TRY(read("tokenizer.ggml.eos_token_id", 2, true, tokens.eos));
  SELM_TRY(read("tokenizer.ggml.eot_token_id", kNoToken, true, tokens.eot));
  SELM_TRY(read("tokenizer.ggml.eom_token_id", kNoToken, true, tokens.eom));
  SELM_TRY(read("tokenizer.ggml.unknown_token_id", 0, false, tokens.unknown));
  SELM_TRY(read("tokenizer.ggml.padding_token_id", kNoToken, false, tokens.padding));
  SELM_TRY(read("tokenizer.ggml.separator_token_id", kNoToken, false, tokens.separator));
  // What files say: llama.cpp's writer misspells it.
  if (tokens.separator == kNoToken) {
    SELM_TRY(read("tokenizer.ggml.seperator_token_id", kNoToken, false, tokens.separator));
  }
  return {};
}

// In files without token types, the tokens named by id are special where they look it.
void infer_types(const SpecialTokens& tokens, Vocabulary& vocabulary) {
  for (const Token id : {tokens.bos, tokens.eos, tokens.eot, tokens.eom, tokens.padding, tokens.unknown}) {
    if (id == kNoToken) continue;
    const std::string_view text = vocabulary.text(id);
    const bool bracketed = text.size() > 2 && ((text.front() == '<' && text.back() == '>') ||
                                               (text.front() == '[' && text.back() == ']'));
    if (bracketed) vocabulary.set_type(id, id == tokens.unknown ? TokenType::unknown : TokenType::control);
  }
}

void find_ends(SpecialSet& set, Vocabulary& vocabulary) {
  for (const Spelling& spelling : kEnds) {
    const Token id = vocabulary.find(spelling.text);
    if (id == kNoToken) continue;
    if (spelling.certain) vocabulary.set_type(id, TokenType::control);
    if (vocabulary.type(id) != TokenType::control) continue;
    set.ends.push_back(id);
    if (spelling.turn && set.tokens.eot == kNoToken) set.tokens.eot = id;
    if (spelling.text == "<|eom_id|>" && set.tokens.eom == kNoToken) set.tokens.eom = id;
  }
  for (const Token id : {set.tokens.eos, set.tokens.eot, set.tokens.eom}) {
    if (id != kNoToken) set.ends.push_back(id);
  }
  std::sort(set.ends.begin(), set.ends.end());
  set.ends.erase(std::unique(set.ends.begin(), set.ends.end()), set.ends.end());
}

}  // namespace

Result<SpecialSet> read_special(const gguf::File& file, const PreTokenizer* rules, Vocabulary& vocabulary) {
  const bool spm = rules == nullptr;
  SpecialSet set;
  SpecialTokens& tokens = set.tokens;
  SELM_TRY(read_ids(file, spm, vocabulary, tokens));
  SELM_ASSIGN(tokens.add_bos,
              read_add(file, "tokenizer.ggml.add_bos_token", spm || rules->add_bos, tokens.bos));
  SELM_ASSIGN(tokens.add_eos, read_add(file, "tokenizer.ggml.add_eos_token", false, tokens.eos));
  SELM_ASSIGN(const std::optional<bool> prefix, file.get_bool("tokenizer.ggml.add_space_prefix"));
  tokens.add_space_prefix = spm && prefix.value_or(true);
  if (file.find("tokenizer.ggml.token_type") == nullptr) infer_types(tokens, vocabulary);
  find_ends(set, vocabulary);
  return set;
}

}  // namespace selm::text
