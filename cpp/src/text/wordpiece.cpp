#include "text/wordpiece.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <optional>

#include "gguf/cursor.h"
#include "gguf/gguf.h"
#include "text/unicode.h"

namespace selm::text {
namespace {

struct Folded {
  Fold fold;
  uint32_t code;         // what it becomes; of a mark, itself
  int32_t argument = 0;  // of a mark its order, of a sequence where it is listed
};

Folded look_up(uint32_t code) {
  const uint32_t key = code << 4 | 0xF;
  const FoldRange* next =
      std::upper_bound(kFoldRanges, kFoldRanges + kFoldRangeCount, key,
                       [](uint32_t wanted, const FoldRange& range) { return wanted < range.first_and_fold; });
  const FoldRange& range = next[-1];  // the table begins with U+0000
  const uint32_t place = code - (range.first_and_fold >> 4);
  const auto fold = static_cast<Fold>(range.first_and_fold & 0xF);
  switch (fold) {
    case Fold::pairs:
      return {Fold::text, place % 2 == 0 ? code + 1 : code};
    case Fold::list:
    case Fold::ideographs:
      return {fold == Fold::list ? Fold::text : Fold::ideograph,
              kFoldLists[static_cast<uint32_t>(range.argument) + place]};
    case Fold::combining:
    case Fold::sequence:
      return {fold, code, range.argument};
    default:
      return {fold, code + static_cast<uint32_t>(range.argument)};
  }
}

// What the table says of ASCII, without a search.
constexpr Folded fold_ascii(uint32_t code) {
  if (code == '\t' || code == '\n' || code == '\r' || code == ' ') return {Fold::space, code};
  if (code < ' ' || code == 0x7F) return {Fold::drop, code};
  if (code >= 'A' && code <= 'Z') return {Fold::text, code - 'A' + 'a'};
  const bool plain = (code >= 'a' && code <= 'z') || (code >= '0' && code <= '9');
  return {plain ? Fold::text : Fold::punctuation, code};
}
constexpr auto kAscii = [] {
  std::array<Folded, 128> table{};
  for (uint32_t code = 0; code < table.size(); ++code) table[code] = fold_ascii(code);
  return table;
}();

Folded fold(uint32_t code) { return code < kAscii.size() ? kAscii[code] : look_up(code); }

// The Unicode standard, section 3.12: the letters of a Hangul syllable.
constexpr uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr uint32_t kVowelCount = 21, kTailCount = 28;

constexpr std::string_view kContinues = "##";

}  // namespace

// ---- Words ------------------------------------------------------------------------------------

// What is beyond the most characters is counted, no longer kept.
void BertWords::append(uint32_t code) {
  if (++characters_ > most_) return;
  if (code < 0x80) {
    word_.push_back(static_cast<char>(code));
  } else {
    append_utf8(code, word_);
  }
}

// Marks are sorted by their order, those of one order as they came, up to the next character that is
// none (canonical ordering, section 3.11). A word too long is unknown in any order.
void BertWords::hold(Mark mark) {
  if (characters_ + run_.size() > most_) return;
  const auto after = std::upper_bound(run_.begin(), run_.end(), mark,
                                      [](const Mark& a, const Mark& b) { return a.order < b.order; });
  run_.insert(after, mark);
}

void BertWords::end_run() {
  if (run_.empty()) return;
  for (const Mark& mark : run_) append(mark.code);
  run_.clear();
}

void BertWords::append_fold(uint32_t code) {
  const Folded folded = fold(code);
  if (folded.fold == Fold::combining) {
    hold({folded.argument, code});
  } else {
    end_run();
    append(folded.code);
  }
}

bool BertWords::next() {
  word_.clear();
  characters_ = 0;
  const auto ends = [this] {  // whether what was read so far is a word
    end_run();
    return characters_ > 0;
  };
  while (at_ < text_.size()) {
    const Utf8Char read = read_utf8(text_, at_);
    const Folded folded = fold(read.code);
    const bool alone = folded.fold == Fold::punctuation || folded.fold == Fold::ideograph;
    if (alone && ends()) return true;  // and is itself the next one
    at_ += read.length;
    switch (folded.fold) {
      case Fold::drop:
        break;
      case Fold::barrier:
        end_run();
        break;
      case Fold::space:
        if (ends()) return true;
        break;
      case Fold::combining:
        hold({folded.argument, folded.code});
        break;
      case Fold::sequence: {
        const uint32_t* list = kFoldLists + folded.argument;
        for (uint32_t i = 1; i <= list[0]; ++i) append_fold(list[i]);
        break;
      }
      case Fold::hangul: {
        const uint32_t index = read.code - kSyllables;
        end_run();
        append(kLeads + index / (kVowelCount * kTailCount));
        append(kVowels + index / kTailCount % kVowelCount);
        if (index % kTailCount != 0) append(kTails + index % kTailCount);
        break;
      }
      default:
        end_run();
        append(folded.code);
    }
    if (alone) return true;
  }
  return ends();
}

// ---- Tokens -----------------------------------------------------------------------------------

Result<WordPiece> WordPiece::load(const gguf::File& file, size_t most) {
  SELM_ASSIGN(const std::optional<std::string_view> model, file.get_string("tokenizer.ggml.model"));
  if (!model) return error(Code::format, "tokenizer.ggml.model is missing: the file has no vocabulary");
  if (*model != "bert") {
    return error(Code::unsupported, "tokenizer.ggml.model is '%s', not bert",
                 gguf::printable(*model).c_str());
  }
  WordPiece pieces;
  SELM_ASSIGN(pieces.vocabulary_, Vocabulary::load(file, false));
  const Vocabulary& vocabulary = pieces.vocabulary_;
  SELM_ASSIGN(const std::optional<uint64_t> unknown, file.get_uint("tokenizer.ggml.unknown_token_id"));
  if (unknown && *unknown >= vocabulary.size()) {
    return error(Code::format,
                 "tokenizer.ggml.unknown_token_id is %" PRIu64 "; the vocabulary has %zu tokens", *unknown,
                 vocabulary.size());
  }
  if (unknown) pieces.unknown_ = static_cast<Token>(*unknown);
  pieces.most_ = most;
  pieces.seed_ = hash_seed();
  pieces.continuations_ = HashIndex(vocabulary.size());
  for (size_t i = 0; i < vocabulary.size(); ++i) {
    const auto id = static_cast<Token>(i);
    const std::string_view text = vocabulary.text(id);
    if (!text.starts_with(kContinues) || vocabulary.find_plain(text) != id) continue;
    pieces.continuations_.insert(hash_bytes(text.substr(kContinues.size()), pieces.seed_),
                                 static_cast<uint32_t>(i), [](uint32_t) { return false; });
  }
  return pieces;
}

Token WordPiece::find_continuation(std::string_view piece) const {
  const uint32_t found = continuations_.find(hash_bytes(piece, seed_), [&](uint32_t id) {
    return vocabulary_.text(static_cast<Token>(id)).substr(kContinues.size()) == piece;
  });
  return found == HashIndex::kNone ? kNoToken : static_cast<Token>(found);
}

// The longest token that `rest` begins with, and its length in bytes.
Token WordPiece::longest(std::string_view rest, bool first, size_t* length) const {
  size_t end = std::min(rest.size(), vocabulary_.longest());
  while (end > 0) {
    if (end == rest.size() || (rest[end] & 0xC0) != 0x80) {  // between two characters
      const std::string_view piece = rest.substr(0, end);
      const Token id = first ? vocabulary_.find_plain(piece) : find_continuation(piece);
      *length = end;
      if (id != kNoToken) return id;
    }
    --end;
  }
  return kNoToken;
}

void WordPiece::encode(const BertWords& word, std::vector<Token>& out) const {
  const size_t before = out.size();
  bool known = !word.too_long();
  std::string_view rest = word.word();
  for (bool first = true; known && !rest.empty(); first = false) {
    size_t length = 0;
    const Token id = longest(rest, first, &length);
    known = id != kNoToken;
    out.push_back(id);
    rest.remove_prefix(length);
  }
  if (known) return;
  out.resize(before);
  out.push_back(unknown_);
}

std::vector<Token> WordPiece::encode(std::string_view text) const {
  std::vector<Token> ids;
  for (BertWords word = words(text); word.next();) encode(word, ids);
  return ids;
}

}  // namespace selm::text
