// What a tokenizer takes from its file: defaults, keys, and every way a vocabulary can be wrong.
#include <cmath>

#include "vocab_builder.h"

namespace {

using namespace selm::test;
using selm::Code;

struct Defaults {
  const char* model;
  const char* pre;
  bool add_bos, add_space_prefix;
};

TEST("what is added where the file does not say") {
  const Defaults table[] = {{"llama", "default", true, true}, {"gpt2", "llama-bpe", true, false},
                            {"gpt2", "tekken", true, false},  {"gpt2", "qwen2", false, false},
                            {"gpt2", "gpt-2", false, false},  {"gpt2", "", false, false}};
  for (const Defaults& d : table) {
    Vocab v = std::string(d.model) == "llama" ? spm_vocab() : bytes_vocab(d.pre);
    GgufBuilder file = v.builder();
    if (v.model == "gpt2") file.set("tokenizer.ggml.bos_token_id", uint32_t{7});
    auto loaded = load(file);
    REQUIRE(loaded.ok());
    const SpecialTokens& special = loaded.value().special();
    CHECK(special.add_bos == d.add_bos && !special.add_eos && special.add_space_prefix == d.add_space_prefix);
    CHECK(special.bos == (v.model == "gpt2" ? 7 : 1) && special.eos == (v.model == "gpt2" ? kNoToken : 2));
    if (v.model == "gpt2") CHECK(loaded.value().pre() == d.pre);
  }
}

TEST("what the file says is added") {
  GgufBuilder file = bytes_vocab("llama-bpe").builder();
  file.set("tokenizer.ggml.bos_token_id", uint32_t{1}).set("tokenizer.ggml.eos_token_id", uint32_t{2});
  file.set("tokenizer.ggml.add_bos_token", false).set("tokenizer.ggml.add_eos_token", true);
  file.set("tokenizer.ggml.padding_token_id", uint32_t{256})
      .set("tokenizer.ggml.seperator_token_id", uint32_t{5});
  auto loaded = load(file);
  REQUIRE(loaded.ok());
  CHECK_IDS(loaded.value().encode("a", true, false), {'a', 2});
  CHECK_IDS(loaded.value().encode("a", false, false), {'a'});
  CHECK(loaded.value().special().separator == 5);
  CHECK(loaded.value().special().padding == kNoToken);  // one past the end, as many files have it
}

TEST("a default BOS that the file does not have is not added") {
  auto loaded = load(bytes_vocab("llama-bpe"));
  REQUIRE(loaded.ok());
  CHECK(!loaded.value().special().add_bos && loaded.value().special().bos == kNoToken);
}

TEST("a file without token types") {
  Vocab v = spm_vocab();
  v.add("\u2581");
  GgufBuilder file;
  file.set("tokenizer.ggml.model", "llama").set_array("tokenizer.ggml.tokens", v.tokens);
  auto loaded = load(file);
  REQUIRE(loaded.ok());
  CHECK(loaded.value().type(1) == TokenType::control && loaded.value().type(0) == TokenType::unknown);
  CHECK(loaded.value().type(3) == TokenType::byte);
  CHECK(loaded.value().decode(loaded.value().encode("h\u00e9", true, false), false) == "h\u00e9");
}

// ---- Bad files --------------------------------------------------------------------------------------

TEST("bad vocabularies are refused with their cause") {
  const Vocab good = bytes_vocab();
  const auto with = [&](auto change) {
    Vocab v = good;
    change(v);
    return load(v);
  };
  CHECK(load(good).ok());
  CHECK_ERROR(load(GgufBuilder()), Code::format, "tokenizer.ggml.model is missing");
  CHECK_ERROR(load(GgufBuilder().set("tokenizer.ggml.model", "gpt2")), Code::format, "tokens is missing");
  CHECK_ERROR(load(GgufBuilder().set("tokenizer.ggml.model", uint32_t{3})), Code::format,
              "tokenizer.ggml.model");
  CHECK_ERROR(with([](Vocab& v) { v.model = "bert"; }), Code::unsupported, "'bert'");
  CHECK_ERROR(with([](Vocab& v) { v.pre = "no-such-cut"; }), Code::unsupported, "'no-such-cut'");
  CHECK_ERROR(with([](Vocab& v) { v.tokens.clear(), v.types.clear(); }), Code::format, "has 0 tokens");
  CHECK_ERROR(with([](Vocab& v) { v.types.pop_back(); }), Code::format, "token_type is not an array of 256");
  CHECK_ERROR(with([](Vocab& v) { v.types[9] = 7; }), Code::format, "token 9 has type 7");
  CHECK_ERROR(with([](Vocab& v) { v.tokens[9] = std::string(65537, 'x'); }), Code::unsupported,
              "token 9 has 65537 bytes");
  CHECK_ERROR(with([](Vocab& v) { v.types[9] = -1; }), Code::format, "token 9 has type -1");
  CHECK_ERROR(with([](Vocab& v) { v.merges = {"a b", "ab"}; }), Code::format, "line 1 is not two texts");
  CHECK_ERROR(with([](Vocab& v) { v.merges = {""}; }), Code::format, "line 0 is not two texts");
  CHECK_ERROR(with([](Vocab& v) { v.merges = {"a "}; }), Code::format, "line 0 is not two texts");

  const auto spm_with = [](auto change) {
    Vocab v = spm_vocab();
    change(v);
    return load(v);
  };
  CHECK_ERROR(spm_with([](Vocab& v) { v.scores.push_back(0); }), Code::format,
              "scores is not an array of 259");
  CHECK_ERROR(spm_with([](Vocab& v) { v.scores[4] = NAN; }), Code::format, "token 4 has no number");
  for (const char* text : {"<0x-1>", "<0x1>", "<0x100>", "<0xZZ>", "0x10", ""}) {
    CHECK_ERROR(spm_with([&](Vocab& v) { v.tokens[5] = text; }), Code::format, "token 5 has type byte");
  }
}

TEST("keys of other types, ids out of range") {
  const auto with = [](const char* key, auto value) {
    GgufBuilder file = bytes_vocab().builder();
    return load(file.set(key, value));
  };
  CHECK_ERROR(with("tokenizer.ggml.bos_token_id", uint32_t{256}), Code::format, "bos_token_id is 256");
  CHECK_ERROR(with("tokenizer.ggml.eos_token_id", uint32_t{1u << 31}), Code::format, "eos_token_id");
  CHECK_ERROR(with("tokenizer.ggml.eot_token_id", int32_t{-5}), Code::format, "eot_token_id is -5");
  CHECK_ERROR(with("tokenizer.ggml.eom_token_id", "7"), Code::format, "eom_token_id");
  CHECK_ERROR(with("tokenizer.ggml.add_bos_token", true), Code::format, "add_bos_token is true");
  CHECK_ERROR(with("tokenizer.ggml.add_eos_token", true), Code::format, "add_eos_token is true");
  CHECK_ERROR(with("tokenizer.ggml.add_bos_token", "yes"), Code::format, "add_bos_token");
  CHECK(with("tokenizer.ggml.bos_token_id", int32_t{-1}).ok());
  CHECK(with("tokenizer.ggml.bos_token_id", uint32_t{UINT32_MAX}).ok());
  CHECK(with("tokenizer.ggml.unknown_token_id", uint32_t{999}).ok());

  // Arrays of the wrong element type, single values instead of arrays.
  GgufBuilder numbers;
  numbers.set("tokenizer.ggml.model", "gpt2").set_array("tokenizer.ggml.tokens", std::vector<int32_t>{1, 2});
  CHECK_ERROR(load(numbers), Code::format, "tokens is not an array of strings");
  GgufBuilder types;
  types.set("tokenizer.ggml.model", "llama")
      .set_array("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b"});
  types.set_array("tokenizer.ggml.token_type", std::vector<float>{1, 1});
  CHECK_ERROR(load(types), Code::format, "token_type is not an array");
  GgufBuilder letters;
  letters.set("tokenizer.ggml.model", "gpt2")
      .set_array("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b"});
  CHECK(load(letters).ok());  // there is nothing to merge
  GgufBuilder merges;
  merges.set("tokenizer.ggml.model", "gpt2")
      .set_array("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab"});
  CHECK_ERROR(load(merges), Code::format, "merges is missing");
  CHECK_ERROR(load(merges.set("tokenizer.ggml.merges", "a b")), Code::format,
              "merges is not an array of strings");
}

TEST("odd vocabularies work") {
  Vocab v = bytes_vocab();
  v.add("a");                // twice: the first wins
  v.add("");                 // empty
  v.add("\xFF\xC3", kUser);  // invalid UTF-8
  v.add("", kControl);
  v.add("\xE4\xB8");
  v.merges = {"a b", "a b", "\xFF \xC3"};
  const Token ab = v.add("ab");
  auto loaded = load(v);
  REQUIRE(loaded.ok());
  const Tokenizer& t = loaded.value();
  CHECK_IDS(t.encode("aab", false, true), {'a', ab});
  CHECK_IDS(t.encode("x\xFF\xC3y", false, false), {'x', 258, 'y'});
  CHECK(t.piece(258, false) == "\xFF\xC3" && t.piece(260, false) == "\xE4\xB8" && t.piece(257, true).empty());
}

}  // namespace

SELM_TEST_MAIN
