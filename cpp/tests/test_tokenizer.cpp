// Tokenizers of small vocabularies made here, against plain O(n^2) merging; the published test
// strings of whole vocabularies where SELM_SHARED_DATA names the folder that has them.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "text/tokenizer.h"
#include "vocab_builder.h"

namespace {

using namespace selm::test;

// A pseudo-random sequence, the same on every machine.
class Chance {
 public:
  explicit Chance(uint64_t seed) : state_(seed) {}
  uint32_t below(uint32_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33) % n;
  }

 private:
  uint64_t state_;
};

TEST("bytes and the characters that stand for them") {
  std::map<uint32_t, int> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const uint32_t code = code_of_byte(static_cast<uint8_t>(byte));
    CHECK(seen.emplace(code, byte).second);
    CHECK(byte_of_code(code) == byte);
    CHECK(code > 0x20 && code != 0x7F && code != 0xA0 && code != 0xAD);
  }
  CHECK(seen.rbegin()->first == 0x143);
  CHECK(code_of_byte(' ') == 0x120 && code_of_byte('\n') == 0x10A && code_of_byte('a') == 'a');
  for (const uint32_t code : {0x20u, 0x7Fu, 0xA0u, 0xADu, 0x144u, 0x1F600u}) CHECK(byte_of_code(code) == -1);
  CHECK(bytes_of_text(encoded("a \n\xFF")) == "a \n\xFF");
  CHECK(bytes_of_text("\u4e2d \xFF") == "\u4e2d \xFF");  // what stands for no byte stays
}

TEST("BPE merges by rank, then from the left") {
  Vocab v = bytes_vocab();
  const Token he = v.merge("h", "e"), ll = v.merge("l", "l"), hell = v.merge("he", "ll"),
              aa = v.merge("a", "a");
  const Token space_a = v.merge(" ", "a");
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  const Tokenizer& t = loaded.value();
  CHECK(t.model() == "gpt2" && t.pre() == "gpt-2" && t.size() == v.tokens.size());
  CHECK_IDS(t.encode("hello", false, false), {hell, 'o'});
  CHECK_IDS(t.encode("hel", false, false), {he, 'l'});
  CHECK_IDS(t.encode("lll", false, false), {ll, 'l'});
  CHECK_IDS(t.encode("aaaaa", false, false), {aa, aa, 'a'});
  CHECK_IDS(t.encode("b aa", false, false), {'b', ' ', aa});  // "a a" ranks before " a"
  CHECK_IDS(t.encode("b a", false, false), {'b', space_a});
  CHECK_IDS(t.encode("", true, true), {});
  CHECK(t.piece(hell, false) == "hell" && t.piece(space_a, false) == " a" &&
        t.text(space_a) == encoded(" a"));
  CHECK(t.piece(-1, true).empty() && t.piece(100'000, true).empty() && t.text(-1).empty());
}

TEST("whole words need no merges where the pre-tokenizer says so") {
  for (const char* pre : {"llama-bpe", "qwen2"}) {
    Vocab v = bytes_vocab(pre);
    const Token abc = v.add(encoded(" abc"));  // no merge leads to it
    const Token hidden = v.add("abd", kControl);
    auto loaded = load(v);
    REQUIRE(loaded.ok());
    const bool whole = std::string(pre) == "llama-bpe";
    CHECK_IDS(loaded.value().encode(" abc", false, false), (whole ? Ids{abc} : Ids{' ', 'a', 'b', 'c'}));
    CHECK_IDS(loaded.value().encode("abd", false, false), {'a', 'b', 'd'});  // never a control token
    CHECK_IDS(loaded.value().encode("abd", false, true), {hidden});
  }
}

TEST("merges never end in a special token") {
  Vocab v = bytes_vocab();
  v.merges = {"\u0120 a", "b c", "bc d"};
  v.add(encoded(" a"), kControl), v.add("bc", kUser);
  const Token bcd = v.add("bcd");
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("x a", false, false), {'x', ' ', 'a'});
  CHECK_IDS(loaded.value().encode("\u0120a", false, false), {0xC4, 0xA0, 'a'});
  CHECK_IDS(loaded.value().encode("bcd", false, false), {257, 'd'});  // cut out before any merge
  CHECK(loaded.value().type(bcd) == TokenType::normal);
}

TEST("merges through texts that are no tokens") {
  Vocab v = bytes_vocab();
  v.merges = {"a b", "ab c", "x y"};
  const Token abc = v.add("abc");
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("abcab", false, false), {abc, 'a', 'b'});
  CHECK_IDS(loaded.value().encode("xy", false, false), {'x', 'y'});
}

TEST("bytes without a token become unknown, or nothing") {
  Vocab v;
  const Token unknown = v.add("<unk>", kUnknown), a = v.add("a");
  GgufBuilder file = v.builder();
  auto without = load(file);
  file.set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  auto with = load(file);
  REQUIRE(without.ok() && with.ok());
  CHECK_IDS(without.value().encode("a\u00e9a", false, false), {a, a});
  CHECK_IDS(with.value().encode("a\u00e9a", false, false), {a, unknown, unknown, a});
}

// ---- Against plain merging ---------------------------------------------------------------------

// Joins, again and again, the best pair of neighbours: `rank(left, right)` is lowest, leftmost.
template <class Rank>
std::vector<std::string> merge_plainly(std::vector<std::string> parts, Rank rank) {
  for (;;) {
    size_t best = parts.size();
    double best_rank = INFINITY;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const double r = rank(parts[i], parts[i + 1]);
      if (r < best_rank) best = i, best_rank = r;
    }
    if (best == parts.size()) return parts;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST("BPE of random vocabularies merges as the plain way does") {
  Chance chance(3);
  for (int round = 0; round < 60; ++round) {
    Vocab v = bytes_vocab();
    std::vector<std::string> texts = {"a", "b", "c", "d"};
    std::map<std::pair<std::string, std::string>, double> ranks;
    for (int i = 0; i < 40; ++i) {
      const std::string left = texts[chance.below(static_cast<uint32_t>(texts.size()))];
      const std::string right = texts[chance.below(static_cast<uint32_t>(texts.size()))];
      if (left.size() + right.size() > 12 || !ranks.emplace(std::pair(left, right), i).second) continue;
      v.merge(left, right);  // may repeat a token's text: the first one wins
      texts.push_back(left + right);
    }
    auto loaded = load(v);
    REQUIRE(loaded.ok());
    std::string word;
    for (uint32_t i = 0, n = chance.below(200); i < n; ++i) word.push_back("abcd"[chance.below(4)]);
    std::vector<std::string> parts;
    for (const char c : word) parts.emplace_back(1, c);
    parts = merge_plainly(parts, [&](const std::string& l, const std::string& r) {
      const auto found = ranks.find({l, r});
      return found == ranks.end() ? INFINITY : found->second;
    });
    std::vector<std::string> got;
    for (const Token id : loaded.value().encode(word, false, false))
      got.push_back(loaded.value().piece(id, false));
    CHECK(got == parts);
  }
}

TEST("SPM of random vocabularies merges as the plain way does") {
  Chance chance(4);
  for (int round = 0; round < 60; ++round) {
    Vocab v = spm_vocab();
    std::map<std::string, double> scores;
    const auto add = [&](const std::string& text) {
      const double score = -static_cast<double>(chance.below(12));  // many are equal
      if (scores.emplace(text, score).second) v.add(text, kNormal, static_cast<float>(score));
    };
    for (const char* c : {"a", "b", "\u00e9", "\u4e2d"}) add(c);
    for (int i = 0; i < 40; ++i) {
      auto at = std::next(scores.begin(), chance.below(static_cast<uint32_t>(scores.size())));
      auto other = std::next(scores.begin(), chance.below(static_cast<uint32_t>(scores.size())));
      if (at->first.size() + other->first.size() <= 16) add(at->first + other->first);
    }
    GgufBuilder file = v.builder();
    file.set("tokenizer.ggml.add_space_prefix", false);
    auto loaded = load(file);
    REQUIRE(loaded.ok());
    std::vector<std::string> parts;
    std::string text;
    const char* units[] = {"a", "b", "\u00e9", "\u4e2d"};
    for (uint32_t i = 0, n = chance.below(150); i < n; ++i) parts.emplace_back(units[chance.below(4)]);
    for (const std::string& part : parts) text += part;
    parts = merge_plainly(parts, [&](const std::string& l, const std::string& r) {
      const auto found = scores.find(l + r);
      return found == scores.end() ? INFINITY : -found->second;
    });
    std::vector<std::string> got;
    for (const Token id : loaded.value().encode(text, false, false))
      got.push_back(loaded.value().piece(id, false));
    CHECK(got == parts);
  }
}

// ---- SPM ------------------------------------------------------------------------------------------

TEST("SPM: space before the text, bytes for what is no token") {
  Vocab v = spm_vocab();
  const Token space = v.add("\u2581", kNormal, -1), a = v.add("a", kNormal, -2),
              sa = v.add("\u2581a", kNormal, -3);
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  const Tokenizer& t = loaded.value();
  const auto byte = [](int b) { return static_cast<Token>(3 + b); };
  CHECK(t.model() == "llama");
  CHECK_IDS(t.encode("", true, false), {1});
  CHECK_IDS(t.encode("a", true, false), {1, sa});
  CHECK_IDS(t.encode(" a", false, false), {space, sa});
  CHECK_IDS(t.encode("aa\n", false, false), {sa, a, byte('\n')});
  CHECK_IDS(t.encode("\u00e9\xFF", false, false), {space, byte(0xC3), byte(0xA9), byte(0xFF)});
  CHECK_IDS(t.encode("<0x0A>", false, true),
            {space, byte('<'), byte('0'), byte('x'), byte('0'), byte('A'), byte('>')});
  // Again after each special token.
  CHECK_IDS(t.encode("a</s>a", false, true), {sa, 2, sa});
  CHECK(t.decode(t.encode("a a", true, false), false) == "a a");
  CHECK(t.decode(t.encode(" a", true, false), false) == " a");
  CHECK(t.decode(Ids{1, sa}, true) == "<s> a");
  CHECK(t.piece(byte(0xC3), false) == "\xC3" && t.piece(sa, false) == " a" && t.piece(1, false).empty());
}

TEST("SPM without byte tokens: one unknown for a character") {
  Vocab v;
  v.model = "llama";
  v.add("<unk>", kUnknown);
  v.add("<s>", kControl);
  v.add("</s>", kControl);
  const Token a = v.add("a"), space = v.add("\u2581");
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("a\u4e2da", false, false), {space, a, 0, a});
}

TEST("SPM never makes a control token of plain text") {
  Vocab v = spm_vocab();
  for (const char* part : {"<", "/", "s", ">", "</", "</s", "<s"}) v.add(part, kNormal, -1);
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  for (const Token id : loaded.value().encode("x</s><s><unk>", false, false)) {
    CHECK(loaded.value().type(id) != TokenType::control && loaded.value().type(id) != TokenType::unknown);
  }
}

// ---- Special tokens -------------------------------------------------------------------------------

TEST("special tokens: the leftmost, then the longest; control ones only when asked") {
  Vocab v = bytes_vocab();
  const Token a = v.add("<|a|>", kControl), longer = v.add("<|a|>>", kControl), user = v.add("<|u", kUser);
  const Token bracket = v.add("[[", kUser);
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  const Tokenizer& t = loaded.value();
  CHECK_IDS(t.encode("<|a|>", false, true), {a});
  CHECK_IDS(t.encode("x<|a|>>y", false, true), {'x', longer, 'y'});
  CHECK_IDS(t.encode("<|a|>", false, false), {'<', '|', 'a', '|', '>'});
  CHECK_IDS(t.encode("<|<|u|>", false, false), {'<', '|', user, '|', '>'});
  CHECK_IDS(t.encode("[[[", false, true), {bracket, '['});
  CHECK(t.piece(a, false).empty() && t.piece(a, true) == "<|a|>" && t.piece(user, false) == "<|u");
  CHECK(t.decode(Ids{a, 'h', 'i'}, false) == "hi" && t.decode(Ids{a, 'h'}, true) == "<|a|>h");
}

TEST("end tokens: by id and by spelling") {
  Vocab v = bytes_vocab("qwen2");
  const Token text_end = v.add("<|endoftext|>", kControl), turn_end = v.add("<|im_end|>", kNormal);
  const Token s = v.add("</s>", kNormal), eom = v.add("<|eom_id|>", kControl),
              own = v.add("<stop>", kControl);
  GgufBuilder file = v.builder();
  file.set("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(own));
  auto loaded = load(file);
  REQUIRE(loaded.ok());
  const Tokenizer& t = loaded.value();
  CHECK(t.is_end(text_end) && t.is_end(turn_end) && t.is_end(eom) && t.is_end(own));
  CHECK(!t.is_end(s) && !t.is_end('a') && !t.is_end(kNoToken));  // "</s>" is plain text there
  CHECK(t.special().eos == own && t.special().eot == turn_end && t.special().eom == eom);
  CHECK(t.type(turn_end) == TokenType::control && t.piece(turn_end, false).empty());
  CHECK(t.type(s) == TokenType::normal);
}

TEST("Phi-3's special tokens eat the white space after them") {
  Vocab v = spm_vocab();
  const Token end = v.add("<|end|>", kControl), space = v.add("\u2581"), a = v.add("a");
  GgufBuilder file = v.builder();
  auto other = load(file);
  file.set("general.name", "Phi-3 Mini");
  auto phi = load(file);
  REQUIRE(other.ok() && phi.ok());
  CHECK_IDS(phi.value().encode("<|end|> \n\ta", false, true), {end, space, a});
  CHECK_IDS(phi.value().encode("<|end|> \n", false, true), {end});
  CHECK_IDS(phi.value().encode("<s> a", false, true), {1, space, space, a});
  CHECK_IDS(other.value().encode("<|end|> a", false, true), {end, space, space, a});
}

// ---- Round trips --------------------------------------------------------------------------------------

std::string random_text(Chance& chance) {
  std::string text;
  for (uint32_t i = 0, n = chance.below(60); i < n; ++i) {
    switch (chance.below(6)) {
      case 0:
        text += static_cast<char>(chance.below(128));
        break;
      case 1:
        text += "  \n\t <|im_end|>'s0123456789"[chance.below(26)];
        break;
      case 2:
        append_utf8(chance.below(0x800), text);
        break;
      case 3:
        append_utf8(0x4E00 + chance.below(0x1000), text);
        break;
      case 4:
        append_utf8(0xE000 + chance.below(0x110000 - 0xE000), text);
        break;
      default:
        text += static_cast<char>('a' + chance.below(26));
        break;
    }
  }
  return text;
}

// decode(encode(x)) is x: for any bytes in BPE; in SPM except that U+2581 comes back as a space.
void check_round_trip(const Tokenizer& t, Chance& chance, int rounds) {
  const bool spm = t.model() == "llama";
  for (int i = 0; i < rounds; ++i) {
    std::string text = random_text(chance);
    if (i % 3 == 0) text += static_cast<char>(0x80 + chance.below(128));  // invalid
    if (text.find("\u2581") != text.npos) continue;
    const bool parse = i % 2 == 0 && !spm;
    if (t.decode(t.encode(text, !spm, parse), true) != text)
      fail(__FILE__, __LINE__, "lost in the round trip: " + text);
    std::string joined;
    for (const Token id : t.encode(text, false, parse)) joined += t.piece(id, true);
    const bool prefixed = t.special().add_space_prefix && !text.empty();
    CHECK(joined == (prefixed ? " " + text : text));
  }
}

TEST("random Unicode and random bytes come back") {
  Chance chance(5);
  for (const char* pre : {"", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-llm", "smollm"}) {
    Vocab v = bytes_vocab(pre);
    v.merge(" ", "a"), v.merge("\xE4", "\xB8"), v.merge(" ", " ");
    v.add("<|im_end|>", kControl);
    auto loaded = load(v);
    REQUIRE(loaded.ok());
    check_round_trip(loaded.value(), chance, 300);
  }
  Vocab v = spm_vocab();
  v.add("\u2581", kNormal, -1), v.add("\u2581a", kNormal, -2), v.add("a", kNormal, -3);
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  check_round_trip(loaded.value(), chance, 300);
}

TEST("one long word does not hang") {  // quadratic, this would take minutes
  Vocab bpe = bytes_vocab();
  bpe.merge("a", "a"), bpe.merge("aa", "aa"), bpe.merge("aaaa", "aaaa");
  Vocab spm = spm_vocab();
  for (const char* text : {"a", "aa", "aaaa", "\u2581"}) spm.add(text, kNormal, -1);
  const std::string word(400'000, 'a');
  for (const Vocab* v : {&bpe, &spm}) {
    auto loaded = load(*v);
    REQUIRE(loaded.ok());
    CHECK(loaded.value().decode(loaded.value().encode(word, false, true), false) == word);
  }
}

// ---- Published vocabularies -----------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// name.inp: texts with a line __ggml_vocab_test__ between; name.out: a line of ids for each.
void check_published(const std::string& path) {
  auto file = selm::gguf::File::open(path);
  REQUIRE(file.ok());
  auto loaded = Tokenizer::load(file.value());
  REQUIRE(loaded.ok());
  const std::string inputs = read_file(path + ".inp"), kBetween = "\n__ggml_vocab_test__\n";
  std::istringstream outputs(read_file(path + ".out"));
  int checked = 0;
  for (size_t at = 0; at < inputs.size(); ++checked) {
    const size_t end = std::min(inputs.find(kBetween, at), inputs.size());
    const std::string text = inputs.substr(at, end - at);
    at = end + kBetween.size();
    std::string line;
    REQUIRE(std::getline(outputs, line));
    std::istringstream ids(line);
    check_ids(__FILE__, __LINE__, loaded.value().encode(text, false, false),
              Ids(std::istream_iterator<Token>(ids), std::istream_iterator<Token>()));
  }
  CHECK(checked > 40);
  Chance chance(6);
  check_round_trip(loaded.value(), chance, 400);
  std::printf("  %s: %d texts exact\n", path.c_str(), checked);
}

TEST("published vocabularies give the published ids") {
  const char* shared = std::getenv("SELM_SHARED_DATA");
  if (shared == nullptr) {
    std::printf("  skipped: SELM_SHARED_DATA does not name the folder with tokenizers/ggml-vocab-*.gguf\n");
    return;
  }
  for (const char* name : {"gpt-2", "qwen2", "phi-3"}) {
    check_published(std::string(shared) + "/tokenizers/ggml-vocab-" + name + ".gguf");
  }
}

}  // namespace

SELM_TEST_MAIN
