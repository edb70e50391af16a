// BERT's words and WordPieces of small vocabularies made here. The Python tests hold the same code to
// the `tokenizers` library for every code point and for texts of any characters.
#include <cstdio>
#include <string>
#include <vector>

#include "text/wordpiece.h"
#include "vocab_builder.h"

namespace {

using namespace selm::test;
using selm::text::BertWords;
using selm::text::WordPiece;
using Words = std::vector<std::string>;

Words words(std::string_view text, size_t most = 100) {
  Words all;
  for (BertWords word(text, most); word.next();) all.emplace_back(word.too_long() ? "?" : word.word());
  return all;
}

// [PAD] [UNK] [CLS], then the tokens given.
Vocab bert_vocab(const std::vector<std::string>& tokens) {
  Vocab v;
  v.model = "bert";
  v.pre = "";
  v.add("[PAD]", kControl), v.add("[UNK]", kUnknown), v.add("[CLS]", kControl);
  for (const std::string& token : tokens) v.add(token);
  return v;
}

GgufBuilder builder(const Vocab& v) {
  GgufBuilder file = v.builder();
  file.set("tokenizer.ggml.unknown_token_id", uint32_t{1});
  return file;
}

selm::Result<WordPiece> load_pieces(const GgufBuilder& file, size_t most = 100) {
  const std::vector<std::byte> bytes = file.build();
  SELM_ASSIGN(const selm::gguf::File opened, selm::gguf::File::parse(bytes));
  return WordPiece::load(opened, most);
}

TEST("words: white space, case, accents, punctuation") {
  CHECK(words("") == Words{});
  CHECK(words(" \t\r\n \u00a0\u2003\u3000") == Words{});
  CHECK(words("Hello, World!") == (Words{"hello", ",", "world", "!"}));
  CHECK(words("don't $5 a_b x^y") == (Words{"don", "'", "t", "$", "5", "a", "_", "b", "x", "^", "y"}));
  CHECK(words("\u00c9cole  na\u00efve \u00dcBER") == (Words{"ecole", "naive", "uber"}));
  CHECK(words("e\u0301\u0323x") == Words{"ex"});
  CHECK(words("\u0130stanbul \u1e9e \u03a3\u03a3") == (Words{"istanbul", "\u00df", "\u03c3\u03c3"}));
  CHECK(words("\u2260\u226e \u037e \u1fef") == (Words{"=", "<", ";", "`"}));  // what they decompose to
  CHECK(words("\u00abja\u00bb \u20ac5") == (Words{"\u00ab", "ja", "\u00bb", "\u20ac5"}));
}

TEST("words: what is cleaned away") {
  CHECK(words(std::string_view("a\0b\x01\x7f\x0b"
                               "c",
                               7)) == Words{"abc"});
  CHECK(words("a\u200b\u200db\u00adc\ufeffd\ufffd"
              "e") == Words{"abcde"});
  CHECK(words("a\u0085b") == Words{"ab"});  // a control character for BERT, no space
  CHECK(words("a\u2028b\u2029c") == (Words{"a", "b", "c"}));
}

TEST("words: invalid UTF-8 counts as U+FFFD") {
  for (const char* bad : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80", "\xe2\x82"}) {
    const std::string middle = std::string("a") + bad + "b";
    CHECK(words(middle) == Words{"ab"});
    CHECK(words(std::string("a ") + bad) == Words{"a"});
  }
  CHECK(words("\xe2\x82") == Words{});
  CHECK(words("caf\xc3") == Words{"caf"});
}

TEST("words: Chinese characters alone, Hangul in letters") {
  CHECK(words("ab\u4e2d\u6587cd") == (Words{"ab", "\u4e2d", "\u6587", "cd"}));
  CHECK(words("\uf900\U0002f800") == (Words{"\u8c48", "\u4e3d"}));
  CHECK(words("\ud55c\uad6d") == Words{"\u1112\u1161\u11ab\u1100\u116e\u11a8"});
  CHECK(words("\uac00") == Words{"\u1100\u1161"});
  CHECK(words("\u304c\u304b") == Words{"\u304b\u304b"});  // the voicing mark is an accent
}

TEST("words: marks that stay come in canonical order") {
  const std::string low = "\U0001d165", high = "\u302e";  // classes 216 and 224
  CHECK(words("a" + high + low) == Words{"a" + low + high});
  CHECK(words("a" + high + "\u0301" + low) == Words{"a" + low + high});  // an accent goes
  CHECK(words("a" + high + "\u200b" + low) == Words{"a" + low + high});  // so does what is cleaned
  CHECK(words("a" + high + "\u034f" + low) == Words{"a" + high + low});  // a mark of class 0 divides
  CHECK(words(high + high + low + low + "b") == Words{low + low + high + high + "b"});
  CHECK(words("\U0001d15e") == Words{"\U0001d157" + low});
  CHECK(words(high + "." + low) == (Words{high, ".", low}));
}

TEST("words of too many characters") {
  CHECK(words("abcd abc", 3) == (Words{"?", "abc"}));
  CHECK(words("\u00e4\u00f6\u00fc \u00e4\u00f6\u00fcx", 3) == (Words{"aou", "?"}));
  CHECK(words("\ud55c \ud55c\uac00", 3) == (Words{"\u1112\u1161\u11ab", "?"}));
  std::string marks;
  for (int i = 0; i < 5; ++i) marks += "\u302e";
  CHECK(words(marks + " " + marks + "a", 5) == (Words{marks, "?"}));
  BertWords word(std::string_view("aaaaaaaaaa"), 3);
  CHECK(word.next() && word.word() == "aaa");  // no more is held
}

TEST("the longest piece first") {
  Vocab v = bert_vocab({"un", "##aff", "##able", "##a", "##ffable", "u", "##b", "word", ",", "\u4e2d"});
  auto loaded = load_pieces(builder(v));
  REQUIRE(loaded.ok());
  const WordPiece& t = loaded.value();
  CHECK(t.unknown() == 1 && t.vocabulary().size() == 13);
  CHECK_IDS(t.encode("unaffable"), {3, 4, 5});
  CHECK_IDS(t.encode("Una, un"), {3, 6, 10 + 1, 3});
  CHECK_IDS(t.encode("unb ub"), {3, 9, 8, 9});
  CHECK_IDS(t.encode("\u4e2dword"), {12, 10});
  CHECK_IDS(t.encode("unx able ##able word"), {1, 1, 1, 1, 1, 10});  // one unknown for a whole word
  CHECK_IDS(t.encode(""), {});
}

TEST("characters of several bytes are never cut") {
  Vocab v = bert_vocab({"\u0434", "##\u0430", "##\u0434\u0430", "\xd0", "##\xb0"});
  auto loaded = load_pieces(builder(v));
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("\u0434\u0430"), {3, 4});
  CHECK_IDS(loaded.value().encode("\u0434\u0434\u0430"), {3, 5});
  CHECK_IDS(loaded.value().encode("\u0435"), {1});
}

TEST("control tokens are never made from text") {
  Vocab v = bert_vocab({"a"});
  const Token hidden = v.add("secret", kControl), more = v.add("##b", kControl);
  auto loaded = load_pieces(builder(v));
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("secret ab a [CLS]"), {1, 1, 3, 1, 1, 1});
  CHECK(hidden == 4 && more == 5);
}

TEST("without an unknown token") {
  auto loaded = load_pieces(bert_vocab({"a"}).builder());
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("a z"), {3, kNoToken});
}

TEST("a word that is too long is unknown") {
  auto loaded = load_pieces(builder(bert_vocab({"a", "##a"})), 4);
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("aaaa aaaaa"), {3, 4, 4, 4, 1});
}

TEST("vocabularies that are refused") {
  const auto refusal = [](const GgufBuilder& file) { return load_pieces(file).status().message(); };
  Vocab v = bert_vocab({"a"});
  v.model = "gpt2";
  CHECK(refusal(builder(v)) == "tokenizer.ggml.model is 'gpt2', not bert");
  v.model = "bert";
  GgufBuilder far = v.builder();
  far.set("tokenizer.ggml.unknown_token_id", uint32_t{4});
  CHECK(refusal(far) == "tokenizer.ggml.unknown_token_id is 4; the vocabulary has 4 tokens");
  CHECK(refusal(GgufBuilder().set("tokenizer.ggml.model", "bert")).find("tokenizer.ggml.tokens") == 0);
  CHECK(refusal(GgufBuilder()) == "tokenizer.ggml.model is missing: the file has no vocabulary");
}

TEST("text::Tokenizer goes on refusing it") {
  const std::vector<std::byte> bytes = builder(bert_vocab({"a"})).build();
  auto file = selm::gguf::File::parse(bytes);
  REQUIRE(file.ok());
  const auto loaded = selm::text::Tokenizer::load(file.value());
  CHECK(!loaded.ok() && loaded.status().code() == selm::Code::unsupported);
}

}  // namespace

SELM_TEST_MAIN
