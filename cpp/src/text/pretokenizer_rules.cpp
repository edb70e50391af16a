// The matchers, each under the expression that it stands for, and the table of names.
// Expressions: from the models' tokenizer.json; names: as llama.cpp's converter writes them.
#include <algorithm>
#include <iterator>

#include "text/pretokenizer.h"

namespace selm::text {
namespace {

using enum CharClass;

// ---- Parts that the rules share ---------------------------------------------------------------

enum class Case { exact, any };

// 's|'t|'re|'ve|'m|'ll|'d, in any case also 'S .. and U+017F, which folds to s.
size_t contraction(const Piece& p, size_t at, Case letters) {
  if (!p.is(at, '\'')) return at;
  const auto letter = [&](size_t i) -> uint32_t {
    if (!p.has(i)) return 0;
    const uint32_t code = p.code(i);
    if (letters == Case::exact) return code;
    if (code == 0x17F) return 's';
    return code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code;
  };
  const uint32_t first = letter(at + 1), second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  const bool two =
      (first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l');
  return two ? at + 3 : at;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ , without the first part unless `newlines`.
size_t white_space(const Piece& p, size_t at, bool newlines) {
  size_t end = at, after_newline = at;
  while (p.space(end)) {
    if (p.newline(end)) after_newline = end + 1;
    ++end;
  }
  if (newlines && after_newline > at) return after_newline;
  return p.has(end) && end - at > 1 ? end - 1 : end;  // the last space goes to the next word
}

template <class Test>
size_t run(size_t at, Test test) {
  while (test(at)) ++at;
  return at;
}

// X+ with an optional space before it, " ?X+" or "\s?X+".
template <class Test>
size_t spaced_run(const Piece& p, size_t at, bool any_space, Test test) {
  const bool space = any_space ? p.space(at) : p.is(at, ' ');
  const size_t begin = space && test(at + 1) ? at + 1 : at;
  const size_t end = run(begin, test);
  return end > begin ? end : at;
}

size_t numbers(const Piece& p, size_t at, size_t most) {
  size_t end = at;
  while (end - at < most && p.number(end)) ++end;
  return end;
}
constexpr size_t kAll = SIZE_MAX;

// [^\r\n\p{L}\p{N}], which may begin a word.
bool word_prefix(const Piece& p, size_t at) {
  return p.has(at) && !p.newline(at) && !p.letter(at) && !p.number(at);
}

// [^\r\n\p{L}\p{N}]?X+ where X holds at least the letters. A mark that is in X and could be the
// prefix gives the same end either way.
template <class Test>
size_t prefixed_run(const Piece& p, size_t at, Test test) {
  if (test(at)) return run(at, test);
  if (word_prefix(p, at) && test(at + 1)) return run(at + 1, test);
  return at;
}

// ---- Words cut where small letters turn to capitals (tekken, o200k) ---------------------------

bool caseless(const Piece& p, size_t i) { return p.is(i, modifier) || p.is(i, letter) || p.mark(i); }
bool capital(const Piece& p, size_t i) { return p.is(i, upper) || p.is(i, title) || caseless(p, i); }
bool small(const Piece& p, size_t i) { return p.is(i, lower) || caseless(p, i); }

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
size_t ends_small(const Piece& p, size_t at) {
  const size_t capitals = run(at, [&](size_t i) { return capital(p, i); });
  const size_t end = run(capitals, [&](size_t i) { return small(p, i); });
  if (end > capitals) return end;
  for (size_t i = capitals; i > at; --i) {  // give back until one of them can be the small letter
    if (caseless(p, i - 1)) return i;
  }
  return at;
}

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*
size_t begins_capital(const Piece& p, size_t at) {
  const size_t capitals = run(at, [&](size_t i) { return capital(p, i); });
  return capitals == at ? at : run(capitals, [&](size_t i) { return small(p, i); });
}

size_t cased_word(const Piece& p, size_t at) {
  for (const auto match : {ends_small, begins_capital}) {
    if (word_prefix(p, at)) {
      if (const size_t end = match(p, at + 1); end > at + 1) return end;
    }
    if (const size_t end = match(p, at); end > at) return end;
  }
  return at;
}

// ---- Whole expressions -------------------------------------------------------------------------

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2(const Piece& p, size_t at) {
  const auto is_letter = [&](size_t i) { return p.letter(i); };
  const auto is_number = [&](size_t i) { return p.number(i); };
  const auto is_rest = [&](size_t i) { return p.has(i) && !p.space(i) && !p.letter(i) && !p.number(i); };
  size_t end = contraction(p, at, Case::exact);
  if (end == at) end = spaced_run(p, at, false, is_letter);
  if (end == at) end = spaced_run(p, at, false, is_number);
  if (end == at) end = spaced_run(p, at, false, is_rest);
  return end > at ? end : white_space(p, at, false);
}

enum class Words { letters, letters_and_marks, cased, cased_contracted };
enum class AfterSymbols { nothing, newlines, newlines_and_slashes };

struct Family {       // of cl100k's and o200k's expressions
  bool contractions;  // (?i:'s|'t|'re|'ve|'m|'ll|'d) first
  Words words;
  size_t digits;  // \p{N}{1,digits}
  AfterSymbols after;
};

size_t word(const Family& family, const Piece& p, size_t at) {
  switch (family.words) {
    case Words::letters:
      return prefixed_run(p, at, [&](size_t i) { return p.letter(i); });
    case Words::letters_and_marks:
      return prefixed_run(p, at, [&](size_t i) { return p.letter(i) || p.mark(i); });
    case Words::cased:
      return cased_word(p, at);
    case Words::cased_contracted:
      break;
  }
  const size_t end = cased_word(p, at);
  return end > at ? contraction(p, end, Case::any) : at;
}

//  ?[^\s\p{L}\p{N}]+ and the newlines after it
size_t symbols(const Family& family, const Piece& p, size_t at) {
  const bool marks_too = family.words != Words::letters_and_marks;
  const size_t end = spaced_run(p, at, false, [&](size_t i) {
    return p.has(i) && !p.space(i) && !p.letter(i) && !p.number(i) && (marks_too || !p.mark(i));
  });
  if (end == at || family.after == AfterSymbols::nothing) return end;
  const bool slashes = family.after == AfterSymbols::newlines_and_slashes;
  return run(end, [&](size_t i) { return p.newline(i) || (slashes && p.is(i, '/')); });
}

size_t match(const Family& family, const Piece& p, size_t at) {
  size_t end = family.contractions ? contraction(p, at, Case::any) : at;
  if (end == at) end = word(family, p, at);
  if (end == at) end = numbers(p, at, family.digits);
  if (end == at) end = symbols(family, p, at);
  return end > at ? end : white_space(p, at, true);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
// |\s*[\r\n]+|\s+(?!\S)|\s+
size_t llama3(const Piece& p, size_t at) {
  return match({true, Words::letters, 3, AfterSymbols::newlines}, p, at);
}
// The same with \p{N}
size_t qwen2(const Piece& p, size_t at) {
  return match({true, Words::letters, 1, AfterSymbols::newlines}, p, at);
}
// The same with \p{N}+ (after a stage of \p{N}{1,3})
size_t minicpm5(const Piece& p, size_t at) {
  return match({true, Words::letters, kAll, AfterSymbols::newlines}, p, at);
}
// qwen2's with [\p{L}\p{M}]+ for words and [^\s\p{L}\p{M}\p{N}]+ for symbols
size_t qwen35(const Piece& p, size_t at) {
  return match({true, Words::letters_and_marks, 1, AfterSymbols::newlines}, p, at);
}
// qwen2's without newlines after symbols
size_t seed_coder(const Piece& p, size_t at) {
  return match({true, Words::letters, 1, AfterSymbols::nothing}, p, at);
}
// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
// |[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}
// | ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t tekken(const Piece& p, size_t at) {
  return match({false, Words::cased, 1, AfterSymbols::newlines_and_slashes}, p, at);
}
// The same with (?i:'s|'t|'re|'ve|'m|'ll|'d)? after both kinds of words, and \p{N}{1,3}
size_t gpt4o(const Piece& p, size_t at) {
  return match({false, Words::cased_contracted, 3, AfterSymbols::newlines_and_slashes}, p, at);
}

// [!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*
// |\s*[\r\n]+|\s+(?!\S)|\s+
size_t deepseek_v3(const Piece& p, size_t at) {
  const auto ascii = [&](size_t i) { return p.in(i, 'A', 'Z') || p.in(i, 'a', 'z'); };
  const auto mark_or_letter = [&](size_t i) { return p.letter(i) || p.mark(i); };
  const auto sign = [&](size_t i) { return p.is(i, punctuation) || p.is(i, symbol); };
  if (p.in(at, '!', '~') && sign(at) && ascii(at + 1)) return run(at + 1, ascii);
  if (mark_or_letter(at)) return run(at, mark_or_letter);
  if (p.has(at) && !p.newline(at) && !sign(at) && mark_or_letter(at + 1)) return run(at + 1, mark_or_letter);
  if (const size_t end = spaced_run(p, at, false, sign); end > at) {
    return run(end, [&](size_t i) { return p.newline(i); });
  }
  return white_space(p, at, true);
}

// ---- Single stages -----------------------------------------------------------------------------

// \p{N}
size_t one_number(const Piece& p, size_t at) { return numbers(p, at, 1); }
// \p{N}{1,3}
size_t three_numbers(const Piece& p, size_t at) { return numbers(p, at, 3); }
// \p{N}+
size_t all_numbers(const Piece& p, size_t at) { return numbers(p, at, kAll); }
// [0-9][0-9][0-9]
size_t three_digits(const Piece& p, size_t at) {
  return p.in(at, '0', '9') && p.in(at + 1, '0', '9') && p.in(at + 2, '0', '9') ? at + 3 : at;
}
// [\r\n]
size_t one_newline(const Piece& p, size_t at) { return p.newline(at) ? at + 1 : at; }

bool is_sign(const Piece& p, size_t i) {
  return p.is(i, punctuation) || p.is(i, '$') || p.is(i, '+') || p.in(i, '<', '>') || p.is(i, '^') ||
         p.is(i, '~') || p.is(i, '|');
}
// [\p{P}\$\+<=>\^~\|]+
size_t signs(const Piece& p, size_t at) {
  return run(at, [&](size_t i) { return is_sign(p, i); });
}
// [\p{P}\$\+<=>\^~\|`]+
size_t falcon_signs(const Piece& p, size_t at) {
  return run(at, [&](size_t i) { return is_sign(p, i) || p.is(i, '`'); });
}

// [一-龥぀-ゟ゠-ヿ]+ : Han, Hiragana, Katakana
size_t han_kana(const Piece& p, size_t at) {
  return run(at, [&](size_t i) { return p.in(i, 0x4E00, 0x9FA5) || p.in(i, 0x3040, 0x30FF); });
}
// [一-龥ࠀ-一가-퟿]+ : from U+0800 to Han, and Hangul
size_t east_asian(const Piece& p, size_t at) {
  return run(at, [&](size_t i) { return p.in(i, 0x0800, 0x9FA5) || p.in(i, 0xAC00, 0xD7FF); });
}

// \s?\p{L}+
size_t coder_letters(const Piece& p, size_t at) {
  return spaced_run(p, at, true, [&](size_t i) { return p.letter(i); });
}
// \s?\p{P}+
size_t coder_punctuation(const Piece& p, size_t at) {
  return spaced_run(p, at, true, [&](size_t i) { return p.is(i, punctuation); });
}

// The letters that DeepSeek LLM's expression lists: cased ones of some scripts.
struct Range {
  uint32_t first, last;
};
constexpr Range kDeepseekLetters[] = {
    {0x41, 0x5A},       {0x61, 0x7A},       {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},
    {0xF8, 0x1BA},      {0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},
    {0x376, 0x377},     {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},     {0x388, 0x38A},
    {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},     {0x3F7, 0x481},     {0x48A, 0x52F},
    {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},   {0x13F8, 0x13FD},   {0x1C90, 0x1CBA},
    {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},   {0x1E00, 0x1F15},
    {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},   {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},   {0x1FB6, 0x1FBC},
    {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},   {0x1FD6, 0x1FDB},
    {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},   {0x2102, 0x2102},   {0x2107, 0x2107},
    {0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},   {0x213C, 0x213F},
    {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2184},   {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},
    {0x2CEB, 0x2CEE},   {0x2CF2, 0x2CF3},   {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},
    {0xA771, 0xA787},   {0xA78B, 0xA78E},   {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},
    {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},   {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB},
    {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2}, {0x118A0, 0x118DF}, {0x1E900, 0x1E943}};

// \s?[A-Za-z...]+
size_t deepseek_letters(const Piece& p, size_t at) {
  return spaced_run(p, at, true, [&](size_t i) {
    if (!p.has(i)) return false;
    const auto next = std::upper_bound(std::begin(kDeepseekLetters), std::end(kDeepseekLetters), p.code(i),
                                       [](uint32_t code, const Range& range) { return code < range.first; });
    return next != std::begin(kDeepseekLetters) && p.code(i) <= next[-1].last;
  });
}
// \s?[!-/:-~！-／：-～‘-‟　-。]+
size_t deepseek_signs(const Piece& p, size_t at) {
  return spaced_run(p, at, true, [&](size_t i) {
    return p.in(i, '!', '/') || p.in(i, ':', '~') || p.in(i, 0xFF01, 0xFF0F) || p.in(i, 0xFF1A, 0xFF5E) ||
           p.in(i, 0x2018, 0x201F) || p.in(i, 0x3000, 0x3002);
  });
}
// \s+$ . A run of spaces is looked at once, from its beginning: later ones end no differently.
size_t final_spaces(const Piece& p, size_t at) {
  if (at > 0 && p.space(at - 1)) return at;
  const size_t end = run(at, [&](size_t i) { return p.space(i); });
  return p.has(end) ? at : end;
}

//  ?[^(\s|.,!?…。，、।۔،)]+
size_t nordic_words(const Piece& p, size_t at) {
  constexpr std::u32string_view kCut = U"(|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)";
  return spaced_run(p, at, false, [&](size_t i) {
    return p.has(i) && !p.space(i) && kCut.find(static_cast<char32_t>(p.code(i))) == kCut.npos;
  });
}

// ---- Names -------------------------------------------------------------------------------------

// {name, stages, ignore_merges, add_bos}
constexpr PreTokenizer kPreTokenizers[] = {
    {"default", {signs, gpt2, all_numbers, three_digits}, false, false},
    {"gpt-2", {gpt2}, false, false},
    {"phi-2", {gpt2}, false, false},
    {"mpt", {gpt2}, false, false},
    {"olmo", {gpt2}, false, false},
    {"jais", {gpt2}, false, false},
    {"trillion", {gpt2}, false, false},
    {"gigachat", {gpt2}, false, false},
    {"a.x-4.0", {gpt2}, false, false},
    {"mellum", {gpt2}, false, false},
    {"granite-docling", {gpt2}, false, false},
    {"smollm", {one_number, gpt2}, false, false},
    {"starcoder", {one_number, gpt2}, false, false},
    {"refact", {one_number, gpt2}, false, false},
    {"command-r", {one_number, gpt2}, false, false},
    {"codeshell", {one_number, gpt2}, false, false},
    {"minerva-7b", {one_number, gpt2}, false, false},
    {"mellum2", {one_number, gpt2}, false, false},
    {"llama-bpe", {llama3}, true, true},
    {"llama3", {llama3}, true, true},
    {"llama-v3", {llama3}, true, true},
    {"falcon3", {llama3}, true, true},
    {"falcon-h1", {llama3}, true, true},
    {"pixtral", {llama3}, true, true},
    {"midm-2.0", {llama3}, true, true},
    {"lfm2", {llama3}, true, true},
    {"dbrx", {llama3}, false, false},
    {"smaug-bpe", {llama3}, false, false},
    {"glm4", {llama3}, false, false},
    {"chatglm-bpe", {llama3}, false, false},
    {"minicpm5", {three_numbers, minicpm5}, true, false},
    {"qwen2", {qwen2}, false, false},
    {"deepseek-r1-qwen", {qwen2}, false, false},
    {"stablelm2", {qwen2}, false, false},
    {"hunyuan", {qwen2}, false, false},
    {"megrez", {qwen2}, false, false},
    {"kormo", {qwen2}, false, false},
    {"f2llmv2", {qwen2}, false, false},
    {"grok-2", {qwen2}, false, false},
    {"solar-open", {qwen2}, false, false},
    {"bailingmoe", {qwen2}, false, false},
    {"qwen35", {qwen35}, false, false},
    {"seed-coder", {seed_coder}, false, false},
    {"tekken", {tekken}, true, true},
    {"gpt-4o", {gpt4o}, false, false},
    {"llama4", {gpt4o}, false, false},
    {"kanana2", {gpt4o}, false, false},
    {"deepseek-llm",
     {one_newline, deepseek_letters, deepseek_signs, final_spaces, east_asian, one_number},
     false,
     false},
    {"deepseek-coder", {one_newline, coder_letters, coder_punctuation, east_asian, one_number}, false, false},
    {"deepseek-v3", {three_numbers, han_kana, deepseek_v3}, false, false},
    {"hunyuan-dense", {three_numbers, han_kana, deepseek_v3}, false, false},
    {"joyai-llm", {three_numbers, han_kana, deepseek_v3}, false, false},
    {"falcon", {falcon_signs, gpt2, three_digits}, false, false},
    {"viking", {nordic_words, one_number}, false, false},
    {"poro-chat", {nordic_words}, false, false},
    {"bloom", {nordic_words}, false, false},
    {"gpt3-finnish", {nordic_words}, false, false},
};

}  // namespace

const PreTokenizer* find_pretokenizer(std::string_view name) {
  if (name.empty()) name = "default";
  const auto* found = std::find_if(std::begin(kPreTokenizers), std::end(kPreTokenizers),
                                   [&](const PreTokenizer& rules) { return rules.name == name; });
  return found == std::end(kPreTokenizers) ? nullptr : found;
}

}  // namespace selm::text
