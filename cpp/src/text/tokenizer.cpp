#include "text/tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "gguf/cursor.h"
#include "gguf/gguf.h"
#include "text/bpe.h"
#include "text/special_index.h"
#include "text/special_tokens.h"
#include "text/spm.h"
#include "text/unicode.h"
#include "text/vocabulary.h"

namespace selm::text {

struct Tokenizer::Impl {
  Vocabulary vocabulary;
  SpecialSet special;
  SpecialIndex always;   // cut out of any text: user-defined tokens
  SpecialIndex control;  // and control tokens
  std::optional<Bpe> bpe;
  std::optional<Spm> spm;
  std::string pre;
  bool strips_after_special;

  void encode_text(std::string_view text, bool space_prefix, std::vector<Token>& out) const;
  bool strips_after(Token id) const;
};

namespace {

// Phi-3's tokenizer eats white space after its special tokens (rstrip in its tokenizer.json). GGUF
// has no key for that; like llama.cpp, go by the model's name.
Result<bool> is_phi3(const gguf::File& file) {
  SELM_ASSIGN(const std::optional<std::string_view> stated, file.get_string("general.name"));
  std::string name(stated.value_or(""));
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return name.find("phi-3") != name.npos || name.find("phi3") != name.npos;
}

// Longer texts are taken in stretches, so that memory stays bounded (a character takes 12 bytes while
// it is cut into words) and offsets fit 32 bits; a word across such a cut is two.
constexpr size_t kStretch = size_t{16} << 20;

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const gguf::File& file) {
  SELM_ASSIGN(const std::optional<std::string_view> model, file.get_string("tokenizer.ggml.model"));
  if (!model) return error(Code::format, "tokenizer.ggml.model is missing: the file has no vocabulary");
  const bool spm = *model == "llama";
  if (!spm && *model != "gpt2") {
    return error(Code::unsupported, "tokenizer.ggml.model is '%s'; this library knows llama and gpt2",
                 gguf::printable(*model).c_str());
  }
  SELM_ASSIGN(const std::optional<std::string_view> stated, file.get_string("tokenizer.ggml.pre"));
  const std::string_view pre = stated.value_or("");
  const PreTokenizer* rules = spm ? nullptr : find_pretokenizer(pre);
  if (!spm && rules == nullptr) {
    return error(Code::unsupported,
                 "tokenizer.ggml.pre is '%s', a way to cut text that this library does not know",
                 gguf::printable(pre).c_str());
  }
  SELM_ASSIGN(Vocabulary vocabulary, Vocabulary::load(file, spm));
  SELM_ASSIGN(SpecialSet special, read_special(file, rules, vocabulary));
  SELM_ASSIGN(const bool strips, is_phi3(file));
  std::optional<Bpe> bpe;
  if (!spm) {
    SELM_ASSIGN(bpe, Bpe::load(file, vocabulary, *rules));
  }
  SpecialIndex always(vocabulary, false), control(vocabulary, true);
  auto impl = std::make_unique<Impl>(Impl{std::move(vocabulary), std::move(special), std::move(always),
                                          std::move(control), std::move(bpe), std::nullopt, std::string(pre),
                                          strips});
  if (spm) impl->spm.emplace(impl->vocabulary);
  return Tokenizer(std::move(impl));
}

// Text between special tokens.
void Tokenizer::Impl::encode_text(std::string_view text, bool space_prefix, std::vector<Token>& out) const {
  for (bool first = true; !text.empty(); first = false) {
    size_t size = std::min(text.size(), kStretch);
    while (size < text.size() && size > kStretch - 4 && (text[size] & 0xC0) == 0x80) --size;
    const std::string_view stretch = text.substr(0, size);
    text.remove_prefix(size);
    if (bpe) {
      bpe->encode(vocabulary, stretch, special.tokens.unknown, out);
    } else {
      std::string spaced = first && space_prefix ? " " : "";
      spm->encode(vocabulary, escape_spaces(spaced.append(stretch)), special.tokens.unknown, out);
    }
  }
}

bool Tokenizer::Impl::strips_after(Token id) const {
  if (!strips_after_special) return false;
  const std::string_view text = vocabulary.text(id);
  return text != "<unk>" && text != "<s>" && text != "<|endoftext|>";
}

std::vector<Token> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  const SpecialTokens& special = impl_->special.tokens;
  const SpecialIndex& index = parse_special ? impl_->control : impl_->always;
  std::vector<Token> ids;
  if (add_special && special.add_bos) ids.push_back(special.bos);
  for (size_t at = 0; at < text.size();) {
    const SpecialIndex::Match match = index.next(impl_->vocabulary, text, at);
    // SPM puts its space before the text and again after each special token.
    impl_->encode_text(text.substr(at, match.begin - at), special.add_space_prefix, ids);
    at = match.end;
    if (match.id == kNoToken) break;
    ids.push_back(match.id);
    if (impl_->strips_after(match.id)) at = std::min(text.find_first_not_of(" \t\n\v\f\r", at), text.size());
  }
  if (add_special && special.add_eos) ids.push_back(special.eos);
  return ids;
}

std::string Tokenizer::defused(std::string_view text) const {
  constexpr std::string_view kZeroWidthSpace = "\xE2\x80\x8B";
  std::string out;
  size_t copied = 0;
  for (size_t at = 0; at < text.size();) {
    const SpecialIndex::Match match = impl_->control.next(impl_->vocabulary, text, at);
    if (match.id == kNoToken) break;
    at = match.begin + 1;
    while (at < match.end && (text[at] & 0xC0) == 0x80) ++at;
    if (at == match.end || type(match.id) != TokenType::control) continue;
    out.append(text.substr(copied, at - copied)).append(kZeroWidthSpace);
    copied = at;
  }
  return out.append(text.substr(copied));
}

std::string Tokenizer::piece(Token id, bool special) const {
  const Vocabulary& vocabulary = impl_->vocabulary;
  if (!vocabulary.has(id)) return "";
  const std::string_view text = vocabulary.text(id);
  switch (vocabulary.type(id)) {
    case TokenType::control:
    case TokenType::unknown:
      return special ? std::string(text) : "";
    case TokenType::user_defined:
      return impl_->spm ? unescape_spaces(text) : std::string(text);
    case TokenType::byte:
      return std::string(1, static_cast<char>(byte_of_text(text)));
    case TokenType::normal:
    case TokenType::unused:
      break;
  }
  return impl_->spm ? unescape_spaces(text) : bytes_of_text(text);
}

std::string Tokenizer::decode(std::span<const Token> ids, bool special) const {
  std::string out;
  bool strip = impl_->special.tokens.add_space_prefix;
  for (const Token id : ids) {
    const std::string next = piece(id, special);
    const size_t from = strip && !next.empty() && next[0] == ' ' ? 1 : 0;
    strip = strip && next.empty();
    out.append(next, from);
  }
  return out;
}

size_t Tokenizer::size() const { return impl_->vocabulary.size(); }
std::string_view Tokenizer::text(Token id) const {
  return impl_->vocabulary.has(id) ? impl_->vocabulary.text(id) : std::string_view();
}
TokenType Tokenizer::type(Token id) const {
  return impl_->vocabulary.has(id) ? impl_->vocabulary.type(id) : TokenType::unused;
}
bool Tokenizer::is_end(Token id) const {
  return std::binary_search(impl_->special.ends.begin(), impl_->special.ends.end(), id);
}
const SpecialTokens& Tokenizer::special() const { return impl_->special.tokens; }
std::string_view Tokenizer::model() const { return impl_->spm ? "llama" : "gpt2"; }
std::string_view Tokenizer::pre() const { return impl_->pre; }

}  // namespace selm::text
