// The reader against files from an independent writer: what a good file holds, and for every bad
// one the right code, the right byte and the cause. Cases: the list of bad files in the design.
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "check.h"
#include "gguf/gguf.h"
#include "gguf_builder.h"

using selm::Code;
using selm::Result;
using selm::Status;
using selm::gguf::Entry;
using selm::gguf::File;
using selm::gguf::Tensor;
using selm::gguf::ValueType;
using selm::test::Bytes;
using selm::test::GgufBuilder;

namespace {

constexpr uint64_t kHeader = 24;
constexpr uint64_t kUnknownByte = UINT64_MAX;

Status parse_status(const std::vector<std::byte>& bytes) { return File::parse(bytes).status(); }

// Refused with that code, at that byte, with that text in the message.
bool refused(const std::vector<std::byte>& bytes, Code code, uint64_t at, const std::string& cause) {
  const Status status = parse_status(bytes);
  const std::string place = at == kUnknownByte ? "at byte " : "at byte " + std::to_string(at) + ": ";
  const bool as_wanted = status.code() == code && status.message().starts_with(place) &&
                         status.message().find(cause) != std::string::npos;
  if (!as_wanted) {
    std::printf("  got %d '%s', wanted %d '%s...%s'\n", static_cast<int>(status.code()),
                status.message().c_str(), static_cast<int>(code), place.c_str(), cause.c_str());
  }
  return as_wanted;
}
bool refused(const GgufBuilder& file, Code code, uint64_t at, const std::string& cause) {
  return refused(file.build(), code, at, cause);
}

// Every value type, an array of each kind, three tensors.
GgufBuilder small_file() {
  GgufBuilder b;
  b.set("general.architecture", "llama").set("a.u8", uint8_t{200}).set("a.i8", int8_t{-100});
  b.set("a.u16", uint16_t{60000}).set("a.i16", int16_t{-30000}).set("a.u32", uint32_t{4000000000});
  b.set("a.i32", int32_t{-2000000000}).set("a.f32", 1.5f).set("a.yes", true).set("a.no", false);
  b.set("a.u64", uint64_t{1} << 63).set("a.i64", std::numeric_limits<int64_t>::min()).set("a.f64", 1e300);
  b.set("a.empty", "").set_array<int32_t>("b.i32", {1, -2, 3}).set_array<float>("b.f32", {0.5f, -0.25f});
  b.set_array<bool>("b.bool", {true, false}).set_array<uint16_t>("b.none", {});
  b.set_array<std::string>("b.str", {"a", "", "\xff\xfe", std::string("x\0y", 3)});
  b.tensor_f32("one", {4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
  b.tensor("two", {64, 3}, 2, 2 * 18 * 3).tensor("empty", {32, 0}, 8, 0).tensor("scalar", {}, 1, 2);
  return b;
}

// A file with one key whose value is `rest`.
GgufBuilder with_entry(const Bytes& raw) {
  GgufBuilder b;
  return b.entry(raw);
}

}  // namespace

// ---- Good files -------------------------------------------------------------------------------

TEST("a good file is read as written, versions 2 and 3") {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder b = small_file();
    b.version = version;
    const std::vector<std::byte> bytes = b.build();
    Result<File> opened = File::parse(bytes);
    REQUIRE(opened.ok());
    const File& f = opened.value();
    CHECK(f.version() == version && f.size() == bytes.size());
    CHECK(f.entries().size() == 19 && f.tensors().size() == 4);
    CHECK(f.get_string("general.architecture").value() == "llama");
    CHECK(f.get_string("a.empty").value() == "");
    CHECK(f.get_uint("a.u8").value() == 200u && f.get_int("a.i8").value() == -100);
    CHECK(f.get_uint("a.u16").value() == 60000u && f.get_int("a.i16").value() == -30000);
    CHECK(f.get_uint("a.u32").value() == 4000000000u && f.get_int("a.i32").value() == -2000000000);
    CHECK(f.get_uint("a.u64").value() == uint64_t{1} << 63);
    CHECK(f.get_int("a.i64").value() == std::numeric_limits<int64_t>::min());
    CHECK(f.get_float("a.f32").value() == 1.5 && f.get_float("a.f64").value() == 1e300);
    CHECK(f.get_bool("a.yes").value() == true && f.get_bool("a.no").value() == false);
  }
}

TEST("arrays are read element by element") {
  const std::vector<std::byte> bytes = small_file().build();
  Result<File> opened = File::parse(bytes);
  REQUIRE(opened.ok());
  const File& f = opened.value();
  const Entry* ints = f.find("b.i32");
  REQUIRE(ints != nullptr && ints->is_array && ints->count == 3 && ints->type == ValueType::i32);
  CHECK(f.int_at(*ints, 0) == 1 && f.int_at(*ints, 1) == -2 && f.float_at(*ints, 2) == 3.0);
  const Entry* floats = f.find("b.f32");
  REQUIRE(floats != nullptr && floats->count == 2);
  CHECK(f.float_at(*floats, 0) == 0.5 && f.float_at(*floats, 1) == -0.25);
  const Entry* bools = f.find("b.bool");
  REQUIRE(bools != nullptr && bools->count == 2);
  CHECK(f.uint_at(*bools, 0) == 1 && f.uint_at(*bools, 1) == 0);
  const Entry* none = f.find("b.none");
  REQUIRE(none != nullptr);
  CHECK(none->count == 0 && none->is_array);
  const Entry* strings = f.find("b.str");
  REQUIRE(strings != nullptr && strings->count == 4);
  CHECK(f.string(*strings, 0) == "a" && f.string(*strings, 1) == "" && f.string(*strings, 2) == "\xff\xfe");
  CHECK(f.string(*strings, 3) == std::string_view("x\0y", 3));
  // Beyond the end: nothing, not a crash.
  CHECK(f.string(*strings, 4).empty() && f.int_at(*ints, 3) == 0 && f.float_at(*ints, 3) == 0);
}

TEST("tensors are where the file says") {
  const std::vector<std::byte> bytes = small_file().build();
  Result<File> opened = File::parse(bytes);
  REQUIRE(opened.ok());
  const File& f = opened.value();
  const Tensor* one = f.find_tensor("one");
  REQUIRE(one != nullptr && one->size == 32 && one->n_dims == 2);
  CHECK(one->ne[0] == 4 && one->ne[1] == 2 && one->ne[2] == 1 && one->ne[3] == 1);
  CHECK(one->data == bytes.data() + one->offset && one->offset % 32 == 0);
  float last = 0;
  std::memcpy(&last, one->data + 28, 4);
  CHECK(last == 8);
  const Tensor* two = f.find_tensor("two");
  REQUIRE(two != nullptr);
  CHECK(two->type == selm::quant::Type::q4_0 && two->size == 108 && two->offset == one->offset + 32);
  const Tensor* empty = f.find_tensor("empty");
  REQUIRE(empty != nullptr);
  CHECK(empty->size == 0 && empty->ne[1] == 0);
  const Tensor* scalar = f.find_tensor("scalar");
  REQUIRE(scalar != nullptr);
  CHECK(scalar->n_dims == 0 && scalar->ne[0] == 1 && scalar->size == 2);
  CHECK(f.find_tensor("three") == nullptr && f.find("three") == nullptr && f.find("") == nullptr);
}

TEST("a long array of strings: every element by its index") {
  std::vector<std::string> words;
  std::mt19937 random(7);
  for (int i = 0; i < 5001; ++i) words.push_back(std::string(random() % 12, static_cast<char>('a' + i % 26)));
  const std::vector<std::byte> bytes = GgufBuilder().set_array("w", words).set("z", uint8_t{1}).build();
  Result<File> opened = File::parse(bytes);
  REQUIRE(opened.ok());
  const Entry entry = *opened.value().find("w");  // a copy works as well
  bool same = entry.count == words.size();
  for (size_t i = words.size(); i-- > 0;) same &= opened.value().string(entry, i) == words[i];
  CHECK(same);
}

TEST("a file without tensors, without keys, with trailing bytes, without the last padding") {
  CHECK(parse_status(GgufBuilder().build()).ok());
  CHECK(parse_status(GgufBuilder().set("a", "b").build()).ok());
  std::vector<std::byte> longer = small_file().build();
  longer.resize(longer.size() + 17);
  CHECK(parse_status(longer).ok());
  GgufBuilder b = small_file();
  b.pad_end = false;
  CHECK(parse_status(b.build()).ok());
}

TEST("alignments") {
  for (const uint32_t alignment : {8u, 16u, 32u, 64u, 4096u}) {
    GgufBuilder b;
    b.padding = alignment;
    b.set("general.alignment", alignment);
    b.tensor_f32("a", {3}, {1, 2, 3}).tensor_f32("b", {1}, {4});
    const std::vector<std::byte> bytes = b.build();
    Result<File> opened = File::parse(bytes);
    REQUIRE(opened.ok());
    CHECK(opened.value().find_tensor("b")->offset % alignment == 0);
    float value = 0;
    std::memcpy(&value, opened.value().find_tensor("b")->data, 4);
    CHECK(value == 4);
  }
}

// ---- Typed reads ------------------------------------------------------------------------------

TEST("typed reads: absent is nothing, another type or a value that does not fit is an error") {
  const std::vector<std::byte> bytes = small_file().build();
  Result<File> opened = File::parse(bytes);
  REQUIRE(opened.ok());
  const File& f = opened.value();
  CHECK(f.get_uint("no").ok() && !f.get_uint("no").value().has_value());
  CHECK(!f.get_int("no").value() && !f.get_float("no").value() && !f.get_bool("no").value());
  CHECK(!f.get_string("no").value());
  CHECK(f.get_uint("a.i8").status().message().find("is negative: -100") != std::string::npos);
  CHECK(f.get_int("a.u64").status().message().find("too large: 9223372036854775808") != std::string::npos);
  for (const char* key : {"a.f32", "a.yes", "general.architecture", "b.i32"}) {
    CHECK(f.get_uint(key).status().code() == Code::format && f.get_int(key).status().code() == Code::format);
  }
  for (const char* key : {"a.u8", "b.f32", "a.empty"})
    CHECK(f.get_float(key).status().code() == Code::format);
  for (const char* key : {"a.u8", "b.bool"}) CHECK(f.get_bool(key).status().code() == Code::format);
  const Status status = f.get_string("b.str").status();
  CHECK(status.message().starts_with("at byte ") &&
        status.message().find("an array of string") != std::string::npos);
}

// ---- The header -------------------------------------------------------------------------------

TEST("the first word") {
  CHECK(refused(std::vector<std::byte>(), Code::format, 0, "the file is empty"));
  GgufBuilder b = small_file();
  b.magic = "GGUE";
  CHECK(refused(b, Code::format, 0, "not a GGUF file (it begins with 'GGUE')"));
  b.magic = "\x01\x02\xff ";
  CHECK(refused(b, Code::format, 0, "'\\x01\\x02\\xff '"));
  CHECK(
      refused(Bytes().text("version https://git-lfs.github.com/spec/v1").data(), Code::format, 0, "Git LFS"));
  CHECK(refused(Bytes().text("<!DOCTYPE html>").data(), Code::format, 0, "web page"));
  CHECK(refused(Bytes().text("lmgg").data(), Code::format, 0, "old GGML"));
  CHECK(refused(Bytes().text("PK\x03\x04").data(), Code::format, 0, "PyTorch"));
  CHECK(refused(Bytes().number<uint64_t>(99).text("{\"a\":").data(), Code::format, 0, "safetensors"));
  CHECK(refused(Bytes().text("GGU").data(), Code::format, 0, "the file ends inside"));
}

TEST("versions") {
  GgufBuilder b = small_file();
  b.version = 0;
  CHECK(refused(b, Code::format, 4, "version 0"));
  for (const uint32_t version : {1u, 4u, 0x10003u, 0xffffffffu}) {
    b.version = version;
    CHECK(refused(b, Code::unsupported, 4, "version " + std::to_string(version)));
  }
  for (const uint32_t version : {0x02000000u, 0x03000000u}) {
    b.version = version;
    CHECK(refused(b, Code::unsupported, 4, "big-endian"));
  }
}

TEST("counts that no file can hold") {
  for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 32, uint64_t{1} << 62, UINT64_MAX}) {
    GgufBuilder b = small_file();
    b.n_tensors = count;
    CHECK(refused(b, Code::format, 8, std::to_string(count) + " tensors do not fit"));
    b = small_file();
    b.n_entries = count;
    CHECK(refused(b, Code::format, 16, std::to_string(count) + " keys do not fit"));
  }
  // A count that the bytes would allow, but one more than there are.
  GgufBuilder b = small_file();
  b.n_tensors = 5;
  CHECK(!parse_status(b.build()).ok());
  b = small_file();
  b.n_entries = 20;
  CHECK(!parse_status(b.build()).ok());
}

TEST("more keys than this reader takes") {
  Bytes padding;
  padding.text(std::string(14 * ((1u << 17) + 2), 'x'));
  GgufBuilder b = with_entry(padding);
  b.n_entries = (1u << 17) + 1;
  CHECK(refused(b, Code::unsupported, 16, "131073 keys"));
}

// ---- Keys and values --------------------------------------------------------------------------

TEST("keys: empty, over-long, twice, beyond the end") {
  CHECK(refused(with_entry(Bytes().string("").number<uint32_t>(0).number<uint16_t>(1)), Code::format, kHeader,
                "a key is empty"));
  const std::string longest(65535, 'k');
  CHECK(parse_status(GgufBuilder().set(longest, uint8_t{1}).build()).ok());
  CHECK(
      refused(GgufBuilder().set(longest + "k", uint8_t{1}), Code::format, kHeader, "a key has 65536 bytes"));
  for (const uint64_t length : {uint64_t{65535}, uint64_t{1} << 31, uint64_t{1} << 63, UINT64_MAX}) {
    Bytes raw;
    raw.number(length).text("key").number<uint64_t>(0);
    CHECK(refused(with_entry(raw), Code::format, kUnknownByte, "a key"));
  }
  GgufBuilder twice;
  twice.set("b", uint8_t{1}).set("a", uint8_t{2}).set("b", "text");
  CHECK(refused(twice, Code::format, kHeader + 2 * 14 + 8, "key 'b' comes twice"));
}

TEST("a message shows no control bytes of the file, and is cut") {
  GgufBuilder b;
  const std::string key = "\x1b[31m\n" + std::string(300, 'x');
  b.set(key, uint8_t{1}).set(key, uint8_t{1});
  const std::string message = parse_status(b.build()).message();
  CHECK(message.find("\\x1b[31m\\x0a") != std::string::npos && message.find('\x1b') == std::string::npos);
  CHECK(message.size() < 200 && message.find("...") != std::string::npos);
}

TEST("value types that do not exist") {
  for (const uint32_t type : {13u, 14u, 255u, 0x80000000u, UINT32_MAX}) {
    const std::string cause = "key 'k' has value type " + std::to_string(type);
    CHECK(refused(with_entry(Bytes().string("k").number(type).number<uint64_t>(0)), Code::format, kHeader + 9,
                  cause));
    Bytes array;
    array.string("k").number<uint32_t>(9).number(type).number<uint64_t>(1).number<uint64_t>(0);
    CHECK(refused(with_entry(array), Code::format, kHeader + 9, cause));
  }
}

TEST("arrays of arrays") {
  Bytes raw;
  raw.string("k").number<uint32_t>(9).number<uint32_t>(9).number<uint64_t>(1);
  raw.number<uint32_t>(0).number<uint64_t>(1).number<uint8_t>(7);
  CHECK(refused(with_entry(raw), Code::unsupported, kHeader + 9, "key 'k' is an array of arrays"));
}

TEST("arrays longer than the file") {
  for (const uint32_t type : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 10u, 11u, 12u}) {
    for (const uint64_t count : {uint64_t{100}, (uint64_t{1} << 30) + 1, uint64_t{1} << 61, uint64_t{1} << 62,
                                 (uint64_t{1} << 63) + 1, UINT64_MAX}) {
      Bytes raw;
      raw.string("k").number<uint32_t>(9).number(type).number(count).number<uint64_t>(0).number<uint64_t>(0);
      CHECK(refused(with_entry(raw), Code::format, kHeader + 17, std::to_string(count) + " values"));
    }
  }
}

TEST("more strings than any vocabulary has") {
  // 2^21 + 1 empty strings: on disk, a sparse file of one block.
  const uint64_t count = (uint64_t{1} << 21) + 1;
  Bytes many;
  many.string("k").number<uint32_t>(9).number<uint32_t>(8).number<uint64_t>(count);
  many.append(std::vector<std::byte>(count * 8));
  CHECK(refused(with_entry(many), Code::unsupported, kUnknownByte, "2097153 strings"));
}

TEST("strings longer than the file, and longer than any string") {
  for (const uint64_t length :
       {uint64_t{5}, (uint64_t{1} << 30) + 1, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    Bytes one;
    one.string("k").number<uint32_t>(8).number(length).text("four");
    CHECK(refused(with_entry(one), Code::format, kUnknownByte, "a string"));
    Bytes second;
    second.string("k").number<uint32_t>(9).number<uint32_t>(8).number<uint64_t>(2).string("ok");
    second.number(length).text("four");
    CHECK(refused(with_entry(second), Code::format, kUnknownByte, "a string"));
  }
}

TEST("bools are 0 or 1") {
  for (const uint8_t value : {uint8_t{2}, uint8_t{255}}) {
    CHECK(refused(with_entry(Bytes().string("k").number<uint32_t>(7).number(value)), Code::format,
                  kHeader + 13, "the bool " + std::to_string(value)));
    Bytes array;
    array.string("k").number<uint32_t>(9).number<uint32_t>(7).number<uint64_t>(3);
    array.number<uint8_t>(1).number<uint8_t>(0).number(value);
    CHECK(refused(with_entry(array), Code::format, kHeader + 9 + 16 + 2, "key 'k' holds the bool"));
  }
}

TEST("alignments that are none") {
  for (const uint32_t alignment : {0u, 1u, 2u, 4u, 12u, 24u, 33u, 48u, 0xffffffffu}) {
    GgufBuilder b = small_file();
    b.set("general.alignment", alignment);
    CHECK(refused(b, Code::format, kUnknownByte, "general.alignment is " + std::to_string(alignment)));
  }
  GgufBuilder b = small_file();
  b.set("general.alignment", uint64_t{32});
  CHECK(refused(b, Code::format, kUnknownByte, "must be one u32"));
  b = small_file();
  b.set_array<uint32_t>("general.alignment", {32});
  CHECK(refused(b, Code::format, kUnknownByte, "must be one u32"));
  b = small_file();
  b.set("general.alignment", uint32_t{0x80000000u});  // legal, but the data would begin past the end
  CHECK(refused(b, Code::format, b.build().size(), "the file ends before the data of tensor 'one'"));
}

// ---- Tensors ----------------------------------------------------------------------------------

TEST("names of tensors: longest, over-long, twice") {
  const std::string longest(63, 'n');
  CHECK(parse_status(GgufBuilder().tensor(longest, {1}, 0, 4).build()).ok());
  CHECK(refused(GgufBuilder().tensor(longest + "n", {1}, 0, 4), Code::format, kHeader, "has 64 bytes"));
  GgufBuilder b;
  b.tensor("b", {1}, 0, 4).tensor("a", {1}, 0, 4).tensor("b", {2}, 0, 8);
  CHECK(refused(b, Code::format, kHeader + 2 * 33 + 8, "tensor 'b' comes twice"));
}

TEST("dimensions: too many, negative") {
  CHECK(parse_status(GgufBuilder().tensor("t", {2, 1, 1, 1}, 0, 8).build()).ok());
  CHECK(refused(GgufBuilder().tensor("t", {1, 1, 1, 1, 1}, 0, 4), Code::format, kHeader + 9, "5 dimensions"));
  GgufBuilder b;
  b.tensor({"t", {1}, 0, std::vector<std::byte>(4), {}, UINT32_MAX});
  CHECK(refused(b, Code::format, kHeader + 9, "4294967295 dimensions"));
  CHECK(refused(GgufBuilder().tensor("t", {4, UINT64_MAX}, 0, 4), Code::format, kHeader + 21,
                "dimension 1 is negative: -1"));
}

TEST("dimensions whose product overflows") {
  const uint64_t k32 = uint64_t{1} << 32;
  const std::vector<std::vector<uint64_t>> shapes = {
      {k32, k32},
      {4194305, 4194305, 211106198978564},  // wraps to a small positive number
      {k32, k32, 0},                        // empty, but a partial product would overflow
      {k32, k32, k32, k32},
      {uint64_t{1} << 62, 2},
      {INT64_MAX, INT64_MAX},
  };
  for (const std::vector<uint64_t>& shape : shapes) {
    for (const uint32_t type : {0u, 1u, 30u}) {
      CHECK(refused(GgufBuilder().tensor("t", shape, type, 0), Code::format, kUnknownByte,
                    "product of its dimensions"));
    }
  }
  // The product fits, the bytes do not.
  CHECK(refused(GgufBuilder().tensor("t", {uint64_t{1} << 62}, 0, 0), Code::format, kUnknownByte,
                "size in bytes"));
  // Both fit, the end of the data does not.
  GgufBuilder b;
  b.tensor("t", {(uint64_t{1} << 62) - 1}, 0, 0);
  CHECK(refused(b, Code::format, b.build().size(), "the file ends before the data of tensor 't'"));
  // Two tensors whose sizes together overflow.
  b = GgufBuilder();
  b.tensor("t", {uint64_t{1} << 61}, 1, 0).tensor("u", {uint64_t{1} << 61}, 1, 0);
  CHECK(!parse_status(b.build()).ok());
}

TEST("every id of a block type") {
  const std::vector<uint32_t> read = {0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30};
  const std::vector<uint32_t> removed = {4, 5, 31, 32, 33, 36, 37, 38};
  const std::vector<uint32_t> runtime = {9, 15};
  const auto in = [](const std::vector<uint32_t>& list, uint32_t id) {
    return std::find(list.begin(), list.end(), id) != list.end();
  };
  for (uint32_t id = 0; id < 50; ++id) {
    const GgufBuilder b = GgufBuilder().tensor("t", {256, 2}, id, 2 * 256 * 8);  // room for any of them
    const std::string number = "type " + std::to_string(id);
    if (in(read, id)) {
      CHECK(parse_status(b.build()).ok());
    } else if (in(removed, id)) {
      CHECK(refused(b, Code::format, kHeader + 29, "removed from GGUF"));
    } else if (in(runtime, id)) {
      CHECK(refused(b, Code::format, kHeader + 29, "not for files"));
    } else if (id < selm::quant::kTypeLimit) {
      CHECK(refused(b, Code::unsupported, kHeader + 29, number + " ("));
    } else {
      CHECK(refused(b, Code::format, kHeader + 29, number));
    }
  }
  CHECK(refused(GgufBuilder().tensor("t", {256}, UINT32_MAX, 4), Code::format, kHeader + 21,
                "type 4294967295"));
  CHECK(refused(GgufBuilder().tensor("t", {256}, 4, 4), Code::format, kHeader + 21, "type 4 (Q4_2)"));
  CHECK(
      refused(GgufBuilder().tensor("t", {256}, 17, 74), Code::unsupported, kHeader + 21, "type 17 (IQ2_XS)"));
  CHECK(
      refused(GgufBuilder().tensor("t", {256}, 34, 54), Code::unsupported, kHeader + 21, "type 34 (TQ1_0)"));
  CHECK(
      refused(GgufBuilder().tensor("t", {256}, 39, 136), Code::unsupported, kHeader + 21, "type 39 (MXFP4)"));
}

TEST("unsupported is said of a file that is valid otherwise") {
  GgufBuilder b;
  b.tensor("t", {256}, 39, 136).tensor("u", {100}, 2, 0);
  CHECK(refused(b, Code::format, kUnknownByte, "a row of 100"));
  b = GgufBuilder();
  b.tensor("t", {256}, 39, 100);  // short of 136, and the padding ends at 128
  CHECK(refused(b, Code::format, kUnknownByte, "the file ends before the data"));
}

TEST("a row that is not a multiple of the block") {
  for (const uint32_t id : {2u, 3u, 6u, 7u, 8u, 20u}) {
    CHECK(refused(GgufBuilder().tensor("blk.0.ffn_down.weight", {172, 64}, id, 100000), Code::format,
                  kUnknownByte, "a row of 172 is not a multiple of the block of 32"));
  }
  for (const uint32_t id : {10u, 11u, 12u, 13u, 14u, 23u}) {
    CHECK(refused(GgufBuilder().tensor("token_embd.weight", {64, 512}, id, 100000), Code::format,
                  kUnknownByte, "a row of 64 is not a multiple of the block of 256"));
  }
  const std::string message = parse_status(GgufBuilder().tensor("w", {48, 2}, 8, 102).build()).message();
  CHECK(message.find("tensor 'w' (Q8_0)") != std::string::npos);
}

TEST("sizes of the blocks") {  // from the block structs of ggml-common.h
  const std::vector<std::vector<uint64_t>> sizes = {{0, 1024}, {1, 512},  {2, 144},  {3, 160},  {6, 176},
                                                    {7, 192},  {8, 272},  {10, 84},  {11, 110}, {12, 144},
                                                    {13, 176}, {14, 210}, {20, 144}, {23, 136}, {30, 512}};
  for (const std::vector<uint64_t>& s : sizes) {
    const std::vector<std::byte> bytes =
        GgufBuilder().tensor("t", {256}, static_cast<uint32_t>(s[0]), static_cast<size_t>(s[1])).build();
    Result<File> opened = File::parse(bytes);
    REQUIRE(opened.ok());
    CHECK(opened.value().tensors()[0].size == s[1]);
  }
}

TEST("offsets: overlapping, out of order, with a gap, unaligned, huge") {
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{16}, uint64_t{31}}) {
    GgufBuilder b = small_file();
    b.tensors()[1].offset = offset;
    CHECK(refused(b, Code::format, kUnknownByte, "tensor 'two' lies at offset " + std::to_string(offset)));
  }
  for (const uint64_t offset : {uint64_t{33}, uint64_t{64}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 31}) {
    GgufBuilder b = small_file();
    b.tensors()[1].offset = offset;
    CHECK(refused(b, Code::format, kUnknownByte, "out of order or with a gap"));
  }
  GgufBuilder b = small_file();
  b.tensors()[0].offset = 32;
  b.tensors()[1].offset = 0;
  CHECK(refused(b, Code::format, kUnknownByte, "tensor 'one' lies at offset 32 where 0 was due"));
}

TEST("data past the end of the file") {
  GgufBuilder b = small_file();
  std::vector<std::byte> bytes = b.build();
  bytes.resize(bytes.size() - 31);  // the last tensor has 2 bytes and 30 of padding
  CHECK(refused(bytes, Code::format, bytes.size(), "the file ends before the data of tensor 'scalar'"));
  b = GgufBuilder().tensor("t", {64, 1000}, 8, 68);
  CHECK(refused(b, Code::format, b.build().size(), "(68000 bytes at 96 wanted)"));
}

TEST("split files") {
  for (const uint16_t count : {uint16_t{0}, uint16_t{1}}) {
    CHECK(parse_status(GgufBuilder().set("split.count", count).build()).ok());
  }
  CHECK(refused(GgufBuilder().set("split.count", uint16_t{3}), Code::unsupported, kUnknownByte,
                "one of the 3 files"));
  CHECK(refused(GgufBuilder().set("split.count", int32_t{2}), Code::unsupported, kUnknownByte,
                "one of the 2 files"));
}

// ---- Anything at all --------------------------------------------------------------------------

namespace {

// Opens it and, where that succeeds, touches everything that it promises.
uint64_t touch_everything(const std::vector<std::byte>& bytes) {
  Result<File> opened = File::parse(bytes);
  if (!opened.ok()) return opened.status().message().starts_with("at byte ") ? 0 : 1;
  const File& f = opened.value();
  uint64_t sum = 0;
  for (const Entry& e : f.entries()) {
    for (uint64_t i = 0; i < e.count; ++i) {
      sum += f.uint_at(e, i) + static_cast<uint64_t>(f.float_at(e, i) == 0);
      for (const char c : f.string(e, i)) sum += static_cast<unsigned char>(c);
    }
    if (f.find(e.key) != &e)
      std::printf("  lookup of '%.*s' failed\n", static_cast<int>(e.key.size()), e.key.data());
  }
  for (const Tensor& t : f.tensors()) {
    for (uint64_t i = 0; i < t.size; ++i) sum += std::to_integer<uint64_t>(t.data[i]);
    if (f.find_tensor(t.name) != &t) std::printf("  lookup of a tensor failed\n");
  }
  return sum;
}

}  // namespace

TEST("truncated at any byte: refused, until only padding is missing") {
  const std::vector<std::byte> whole = small_file().build();
  size_t first_good = whole.size();
  for (size_t size = 0; size < whole.size(); ++size) {
    std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    part.shrink_to_fit();
    const Status status = parse_status(part);
    if (status.ok()) {
      first_good = std::min(first_good, size);
      touch_everything(part);
    } else {
      CHECK(status.code() == Code::format && status.message().starts_with("at byte ") && size < first_good);
    }
  }
  CHECK(first_good == whole.size() - 30);  // two bytes of 'scalar', thirty of padding
}

TEST("any bit of the file flipped, any byte set to an extreme: no crash") {
  const std::vector<std::byte> good = small_file().build();
  for (size_t at = 0; at < good.size(); ++at) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bad = good;
      bad[at] ^= static_cast<std::byte>(1u << bit);
      touch_everything(bad);
    }
    for (const unsigned value : {0u, 0x7fu, 0x80u, 0xffu}) {
      std::vector<std::byte> bad = good;
      bad[at] = static_cast<std::byte>(value);
      touch_everything(bad);
    }
  }
}

TEST("random changes: no crash") {
  const std::vector<std::byte> good = small_file().build();
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bad = good;
    for (unsigned n = random() % 8 + 1; n > 0; --n)
      bad[random() % bad.size()] = static_cast<std::byte>(random());
    touch_everything(bad);
  }
}

TEST("bytes in memory must be aligned, as tensors are read in place") {
  std::vector<std::byte> bytes(1);
  bytes.resize(1 + small_file().build().size());
  const Status status = File::parse(std::span<const std::byte>(bytes).subspan(1)).status();
  CHECK(status.code() == Code::invalid_argument);
}

SELM_TEST_MAIN
