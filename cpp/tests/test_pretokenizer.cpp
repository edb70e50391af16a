// UTF-8, character classes, and the cutting of text into words.
#include <fstream>
#include <set>
#include <sstream>

#include "check.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using namespace selm::text;
using selm::test::fail;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<std::string> words_of(const PreTokenizer& rules, const std::string& text) {
  std::vector<std::string> words;
  size_t begin = 0;
  for (const uint32_t end : split_words(rules, text)) {
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

// Whole pieces as Python gives them: bytes.decode("utf-8", "replace").
struct Replacement {
  const char* bytes;
  const char* text;
};
const Replacement kReplacements[] = {
    {"plain", "plain"},
    {"\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80", "\u00e9\u4e2d\U0001F600"},
    {"a\xFFz", "a\uFFFDz"},
    {"\x80", "\uFFFD"},
    {"\xC3", "\uFFFD"},
    {"\xC3(", "\uFFFD("},
    {"\xE4\xB8", "\uFFFD"},
    {"\xE4\xB8z", "\uFFFDz"},
    {"\xF0\x9F\x98", "\uFFFD"},
    {"\xF0\x9F\x98\xC3\xA9", "\uFFFD\u00e9"},
    {"\xC0\xAF", "\uFFFD\uFFFD"},                      // overlong
    {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD"},            // overlong
    {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},            // surrogate
    {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above 10FFFF
    {"\xF4\x8F\xBF\xBF", "\U0010FFFF"},
    {"\xED\x9F\xBF\xEE\x80\x80", "\uD7FF\uE000"},
};

TEST("a stream of UTF-8 gives the same text however it is cut") {
  for (const Replacement& c : kReplacements) {
    const std::string bytes = c.bytes;
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      Utf8Stream stream;
      std::string text = stream.push(std::string_view(bytes).substr(0, cut));
      text += stream.push(std::string_view(bytes).substr(cut));
      text += stream.flush();
      CHECK(text == c.text);
    }
    Utf8Stream stream;
    std::string text;
    for (const char byte : bytes) text += stream.push(std::string_view(&byte, 1));
    CHECK(text + stream.flush() == c.text);
    CHECK(stream.flush().empty());
  }
}

TEST("a stream holds back only what is not whole") {
  Utf8Stream stream;
  CHECK(stream.push("ab\xF0\x9F") == "ab");
  CHECK(stream.push("\x98").empty());
  CHECK(stream.push("\x80!") == "\U0001F600!");
  CHECK(stream.flush().empty());
}

TEST("UTF-8 is read as it is written, for every code point") {
  for (uint32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    append_utf8(code, text);
    const Utf8Char read = read_utf8(text, 0);
    if (read.code != code || read.length != text.size() || !read.valid) {
      CHECK(false);
      return;
    }
  }
}

TEST("classes of characters") {
  using enum CharClass;
  const std::pair<uint32_t, CharClass> known[] = {
      {0, other},       {'\t', space},      {' ', space},           {0x1C, other},
      {0x85, space},    {0xA0, space},      {0x3000, space},        {0x200B, other},
      {'A', upper},     {'z', lower},       {0xAA, letter},         {0x100, upper},
      {0x101, lower},   {0x137, lower},     {0x138, lower},         {0x139, upper},
      {0x17F, lower},   {0x1C5, title},     {0x2B0, modifier},      {0x4E2D, letter},
      {0x301, mark},    {0x903, mark},      {'7', number},          {0xBD, number},
      {0x2163, number}, {'!', punctuation}, {'_', punctuation},     {'$', symbol},
      {'`', symbol},    {0x1F600, symbol},  {kReplacement, symbol}, {0x378, other},
      {0xD800, other},  {0xE000, other},    {0x10FFFF, other},      {0x3400, letter},
      {0x9FFF, letter}, {0x20000, letter},  {0xE0100, mark},        {0x4FF, lower}};
  for (const auto& [code, type] : known) {
    if (class_of(code) != type) fail(__FILE__, __LINE__, "class of code point " + std::to_string(code));
  }
}

TEST("words as Hugging Face's tokenizers cut them") {
  std::ifstream file(SELM_SOURCE_DIR "/cpp/tests/data/pretokenizer_cases.txt");
  REQUIRE(file.good());
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name, text;
    fields >> name;
    std::vector<std::string> expected;
    for (std::string hex; fields >> hex; text += expected.back()) expected.push_back(from_hex(hex));
    const PreTokenizer* rules = find_pretokenizer(name);
    REQUIRE(rules != nullptr);
    if (words_of(*rules, text) != expected) fail(__FILE__, __LINE__, name + " cuts differently: " + text);
    names.insert(name);
  }
  CHECK(names.size() == 17);
}

TEST("names: families, the default, and the unknown") {
  const char* families[][2] = {
      {"gpt-2", "phi-2"},        {"gpt-2", "olmo"},         {"gpt-2", "mpt"},
      {"smollm", "starcoder"},   {"smollm", "refact"},      {"smollm", "command-r"},
      {"llama-bpe", "llama3"},   {"llama-bpe", "llama-v3"}, {"llama-bpe", "falcon3"},
      {"qwen2", "megrez"},       {"gpt-4o", "llama4"},      {"qwen2", "deepseek-r1-qwen"},
      {"llama-bpe", "smaug-bpe"}};
  for (const auto& [first, second] : families) {
    REQUIRE(find_pretokenizer(first) != nullptr && find_pretokenizer(second) != nullptr);
    for (size_t i = 0; i < std::size(PreTokenizer{}.stages); ++i) {
      CHECK(find_pretokenizer(first)->stages[i] == find_pretokenizer(second)->stages[i]);
    }
  }
  CHECK(find_pretokenizer("") == find_pretokenizer("default"));
  CHECK(find_pretokenizer("no-such") == nullptr);
  CHECK(find_pretokenizer("llama-bpe")->ignore_merges && find_pretokenizer("llama-bpe")->add_bos);
  CHECK(find_pretokenizer("tekken")->ignore_merges && find_pretokenizer("tekken")->add_bos);
  CHECK(!find_pretokenizer("qwen2")->ignore_merges && !find_pretokenizer("qwen2")->add_bos);
  CHECK(!find_pretokenizer("smaug-bpe")->ignore_merges);
}

TEST("words cover the text, whatever bytes it has") {
  const char* names[] = {"default", "gpt-2",        "smollm",         "llama-bpe",  "minicpm5", "qwen2",
                         "qwen35",  "seed-coder",   "tekken",         "gpt-4o",     "falcon",   "viking",
                         "bloom",   "deepseek-llm", "deepseek-coder", "deepseek-v3"};
  uint32_t state = 1;
  for (const char* name : names) {
    const PreTokenizer* rules = find_pretokenizer(name);
    REQUIRE(rules != nullptr);
    CHECK(split_words(*rules, "").empty());
    for (int round = 0; round < 200; ++round) {
      std::string text;
      for (int i = 0; i < 40; ++i) {
        state = state * 1664525u + 1013904223u;
        text.push_back(static_cast<char>(state >> 24));
      }
      uint32_t last = 0;
      for (const uint32_t end : split_words(*rules, text)) {
        CHECK(end > last);
        last = end;
      }
      CHECK(last == text.size());
    }
  }
}

TEST("long runs are cut in linear time") {  // quadratic, this would take minutes
  for (const char* unit : {" ", "\n ", "a", "A", "1", "!", "A\u0301", "\u3000", "'", "\xFF"}) {
    std::string text;
    while (text.size() < 300'000) text += unit;
    text += "x";
    for (const char* name :
         {"default", "qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-llm", "deepseek-v3", "falcon"}) {
      CHECK(split_words(*find_pretokenizer(name), text).back() == text.size());
    }
  }
}

}  // namespace

SELM_TEST_MAIN
