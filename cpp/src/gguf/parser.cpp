#include "gguf/parser.h"

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <new>
#include <string>

#include "base/memory.h"
#include "gguf/cursor.h"

namespace selm::gguf {
namespace {

// Limits of the reference reader (strings, arrays, names, dims) and of the format document (keys).
constexpr uint64_t kMostKeyBytes = 65535;
constexpr uint64_t kMostStringBytes = uint64_t{1} << 30;
constexpr uint64_t kMostElements = uint64_t{1} << 30;
constexpr uint64_t kMostNameBytes = 63;
constexpr uint32_t kMostDims = 4;
// Ours: real files have dozens of keys and thousands of tensors. It bounds the time and memory
// that a hostile file can take for its directory (0.2 s and 40 MB).
constexpr uint64_t kMostItems = uint64_t{1} << 17;
// Ours: the largest vocabularies have a quarter of a million tokens. A sparse file can hold a
// billion empty strings on one disk block, and whoever reads them pays for each.
constexpr uint64_t kMostStrings = uint64_t{1} << 21;
// The fewest bytes that an item can take; a count beyond bytes left / fewest is refused unread.
constexpr uint64_t kFewestEntryBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kFewestTensorBytes = 8 + 4 + 4 + 8;
constexpr uint32_t kDefaultAlignment = 32;

struct TypeFacts {
  const char* name;
  size_t bytes;
};
constexpr TypeFacts kValueTypes[] = {
    {"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
    {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8},
};

class Parser {
 public:
  explicit Parser(std::span<const std::byte> bytes) : bytes_(bytes), in_(bytes) {}

  Result<Directory> run() {
    SELM_TRY(read_header());
    SELM_TRY(read_entries());
    SELM_TRY(read_alignment());
    SELM_TRY(read_tensors());
    SELM_TRY(place_tensors());
    if (!unsupported_.ok()) return unsupported_;
    SELM_TRY(refuse_split());
    return std::move(out_);
  }

 private:
  Status read_header();
  Status check_count(const char* what, uint64_t offset, uint64_t count, uint64_t fewest_bytes) const;
  Status read_entries();
  Status read_entry(Entry* entry);
  Status read_values(Entry* entry);
  Status read_strings(Entry* entry);
  Status read_alignment();
  Status read_tensors();
  Status read_tensor(Tensor* tensor, uint64_t* relative);
  Status read_shape(Tensor* tensor, uint64_t* elements);
  Status read_type(Tensor* tensor, uint64_t elements);
  Status place_tensors();
  Status refuse_split();

  std::span<const std::byte> bytes_;
  Cursor in_;
  Directory out_;
  uint64_t n_tensors_ = 0, n_entries_ = 0;
  uint32_t alignment_ = kDefaultAlignment;
  std::vector<uint64_t> relative_;  // offsets of the tensors in the data section
  // The first thing that a valid file may hold and this core does not read. Kept until the whole
  // directory has proved valid, so that nobody hands a broken file to another engine.
  Status unsupported_;
};

// What people take for a GGUF file.
const char* likely_kind(std::span<const std::byte> bytes) {
  const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                               std::min<size_t>(bytes.size(), 64));
  if (start.starts_with("version https://git-lfs")) return ": a Git LFS pointer, not the file it stands for";
  if (start.starts_with("<!") || start.starts_with("<html")) return ": a web page; the download went wrong";
  if (start.starts_with("lmgg") || start.starts_with("tjgg") || start.starts_with("fmgg")) {
    return ": an old GGML file; convert it to GGUF";
  }
  if (start.starts_with("PK")) return ": a zip or PyTorch file; convert it to GGUF";
  if (start.size() > 9 && start.substr(8, 2) == "{\"") return ": a safetensors file; convert it to GGUF";
  return "";
}

Status Parser::read_header() {
  if (bytes_.empty()) return at_byte(Code::format, 0, "the file is empty");
  const std::string_view magic(reinterpret_cast<const char*>(bytes_.data()),
                               std::min<size_t>(bytes_.size(), 4));
  if (magic != "GGUF" && !std::string_view("GGUF").starts_with(magic)) {
    return at_byte(Code::format, 0, "not a GGUF file (it begins with '%s')%s", printable(magic).c_str(),
                   likely_kind(bytes_));
  }
  SELM_TRY(in_.skip(4, "its first word"));
  SELM_TRY(in_.read(&out_.version, "the version"));
  const uint32_t version = out_.version;
  if (version == 0) return at_byte(Code::format, 4, "version 0 does not exist");
  if ((version & 0xffff) == 0) {
    return at_byte(Code::unsupported, 4, "version %" PRIu32 ": the file was written big-endian", version);
  }
  if (version == 1 || version > 3) {
    return at_byte(Code::unsupported, 4, "GGUF version %" PRIu32 "; versions 2 and 3 are read", version);
  }
  SELM_TRY(in_.read(&n_tensors_, "the number of tensors"));
  SELM_TRY(in_.read(&n_entries_, "the number of keys"));
  SELM_TRY(check_count("tensors", 8, n_tensors_, kFewestTensorBytes));
  return check_count("keys", 16, n_entries_, kFewestEntryBytes);
}

// Signed in the format: a negative count is one too large for any file.
Status Parser::check_count(const char* what, uint64_t offset, uint64_t count, uint64_t fewest_bytes) const {
  if (count > in_.left() / fewest_bytes) {
    return at_byte(Code::format, offset, "%" PRIu64 " %s do not fit in a file of %zu bytes", count, what,
                   bytes_.size());
  }
  if (count > kMostItems) {
    return at_byte(Code::unsupported, offset, "%" PRIu64 " %s; the most that this reader takes is %" PRIu64,
                   count, what, kMostItems);
  }
  return {};
}

// ---- Metadata ---------------------------------------------------------------------------------

// Sorts the positions of `items` by `text(item)`; the position (in file order) of an item whose text
// an earlier one has, or the number of items.
template <class Item, class Text>
size_t sort_and_find_duplicate(const std::vector<Item>& items, Text text, std::vector<uint32_t>* order) {
  order->resize(items.size());
  for (uint32_t i = 0; i < items.size(); ++i) (*order)[i] = i;
  std::sort(order->begin(), order->end(), [&](uint32_t a, uint32_t b) {
    const int side = text(items[a]).compare(text(items[b]));
    return side != 0 ? side < 0 : a < b;
  });
  size_t first = items.size();
  for (size_t i = 1; i < order->size(); ++i) {
    const uint32_t here = (*order)[i];
    if (text(items[here]) == text(items[(*order)[i - 1]])) first = std::min<size_t>(first, here);
  }
  return first;
}

uint64_t offset_in(std::span<const std::byte> bytes, std::string_view text) {
  return static_cast<uint64_t>(reinterpret_cast<const std::byte*>(text.data()) - bytes.data());
}

Status Parser::read_entries() {
  for (uint64_t i = 0; i < n_entries_; ++i) {
    Entry entry = {};
    SELM_TRY(read_entry(&entry));
    out_.entries.push_back(entry);
  }
  const size_t duplicate = sort_and_find_duplicate(
      out_.entries, [](const Entry& e) { return e.key; }, &out_.by_key);
  if (duplicate == out_.entries.size()) return {};
  const std::string_view key = out_.entries[duplicate].key;
  return at_byte(Code::format, offset_in(bytes_, key), "key '%s' comes twice", printable(key).c_str());
}

Status Parser::read_entry(Entry* entry) {
  const uint64_t start = in_.offset();
  SELM_TRY(in_.read_string(kMostKeyBytes, "a key", &entry->key));
  if (entry->key.empty()) return at_byte(Code::format, start, "a key is empty");
  const uint64_t type_offset = in_.offset();
  uint32_t type = 0;
  SELM_TRY(in_.read(&type, "the type of a key"));
  entry->count = 1;
  entry->is_array = type == static_cast<uint32_t>(ValueType::array);
  uint64_t count_offset = 0;
  if (entry->is_array) {
    SELM_TRY(in_.read(&type, "the element type of an array"));
    count_offset = in_.offset();
    SELM_TRY(in_.read(&entry->count, "the length of an array"));
  }
  const std::string key = printable(entry->key);
  if (type >= std::size(kValueTypes)) {
    return at_byte(Code::format, type_offset, "key '%s' has value type %" PRIu32 ", which does not exist",
                   key.c_str(), type);
  }
  entry->type = static_cast<ValueType>(type);
  if (entry->type == ValueType::array) {
    return at_byte(Code::unsupported, type_offset, "key '%s' is an array of arrays, which no engine reads",
                   key.c_str());
  }
  entry->data = in_.here();
  entry->offset = in_.offset();
  const uint64_t element_bytes = std::max<uint64_t>(value_type_bytes(entry->type), 1);
  const uint64_t least = entry->type == ValueType::string ? 8 : element_bytes;
  if (entry->count > in_.left() / least || entry->count > kMostElements) {
    return at_byte(Code::format, entry->is_array ? count_offset : entry->offset,
                   "key '%s': %" PRIu64 " values of type %s do not fit in the %" PRIu64 " bytes left",
                   key.c_str(), entry->count, value_type_name(entry->type), in_.left());
  }
  if (entry->type == ValueType::string && entry->count > kMostStrings) {
    return at_byte(Code::unsupported, count_offset,
                   "key '%s' holds %" PRIu64 " strings; this reader takes %" PRIu64, key.c_str(),
                   entry->count, kMostStrings);
  }
  return entry->type == ValueType::string ? read_strings(entry) : read_values(entry);
}

Status Parser::read_values(Entry* entry) {
  SELM_TRY(in_.skip(entry->count * value_type_bytes(entry->type), "the values of a key"));
  if (entry->type != ValueType::boolean) return {};
  for (uint64_t i = 0; i < entry->count; ++i) {
    if (const uint8_t value = load<uint8_t>(entry->data + i); value > 1) {
      return at_byte(Code::format, entry->offset + i, "key '%s' holds the bool %u, neither 0 nor 1",
                     printable(entry->key).c_str(), unsigned{value});
    }
  }
  return {};
}

// One pass over the strings checks them and leaves the marks for File::string.
Status Parser::read_strings(Entry* entry) {
  uint64_t* marks = nullptr;
  if (entry->is_array && entry->count > 0) {
    const size_t n = static_cast<size_t>((entry->count - 1) / kMarkStep + 1);
    marks = new (std::nothrow) uint64_t[n];
    if (marks == nullptr) return error(Code::out_of_memory, "no memory for the index of a string array");
    out_.marks.emplace_back(marks);
    entry->marks = marks;
  }
  for (uint64_t i = 0; i < entry->count; ++i) {
    if (marks != nullptr && i % kMarkStep == 0) marks[i / kMarkStep] = in_.offset();
    std::string_view text;
    SELM_TRY(in_.read_string(kMostStringBytes, "a string", &text));
  }
  return {};
}

Status Parser::read_alignment() {
  for (const Entry& e : out_.entries) {
    if (e.key != "general.alignment") continue;
    if (e.is_array || e.type != ValueType::u32) {
      return at_byte(Code::format, e.offset, "general.alignment must be one u32");
    }
    alignment_ = load<uint32_t>(e.data);
    // The reference wants a power of two, the format document a multiple of 8.
    if (alignment_ % 8 != 0 || !std::has_single_bit(alignment_)) {
      return at_byte(Code::format, e.offset,
                     "general.alignment is %" PRIu32 "; it must be a power of two and a multiple of 8",
                     alignment_);
    }
  }
  return {};
}

// ---- Tensors ----------------------------------------------------------------------------------

Status Parser::read_tensors() {
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    Tensor tensor = {};
    uint64_t relative = 0;
    SELM_TRY(read_tensor(&tensor, &relative));
    out_.tensors.push_back(tensor);
    relative_.push_back(relative);
  }
  const size_t duplicate = sort_and_find_duplicate(
      out_.tensors, [](const Tensor& t) { return t.name; }, &out_.by_name);
  if (duplicate == out_.tensors.size()) return {};
  const std::string_view name = out_.tensors[duplicate].name;
  return at_byte(Code::format, offset_in(bytes_, name), "tensor '%s' comes twice", printable(name).c_str());
}

// On success tensor->offset is still that of the directory's offset field, for place_tensors.
Status Parser::read_tensor(Tensor* tensor, uint64_t* relative) {
  SELM_TRY(in_.read_string(kMostNameBytes, "the name of a tensor", &tensor->name));
  uint64_t elements = 0;
  SELM_TRY(read_shape(tensor, &elements));
  SELM_TRY(read_type(tensor, elements));
  tensor->offset = in_.offset();
  return in_.read(relative, "the offset of a tensor");
}

Status Parser::read_shape(Tensor* tensor, uint64_t* elements) {
  const uint64_t start = in_.offset();
  SELM_TRY(in_.read(&tensor->n_dims, "the shape of a tensor"));
  const std::string name = printable(tensor->name);
  if (tensor->n_dims > kMostDims) {
    return at_byte(Code::format, start, "tensor '%s' has %" PRIu32 " dimensions; the most is 4", name.c_str(),
                   tensor->n_dims);
  }
  std::fill(std::begin(tensor->ne), std::end(tensor->ne), uint64_t{1});
  // Zero is a legal size. The product is taken over the others, so that no caller's partial
  // product (ne[0] * ne[1] of a tensor with ne[2] = 0) can overflow either.
  uint64_t product = 1;
  bool empty = false;
  for (uint32_t d = 0; d < tensor->n_dims; ++d) {
    const uint64_t at = in_.offset();
    SELM_TRY(in_.read(&tensor->ne[d], "the shape of a tensor"));
    const uint64_t n = tensor->ne[d];
    if (n > INT64_MAX) {
      return at_byte(Code::format, at, "tensor '%s': dimension %" PRIu32 " is negative: %" PRId64,
                     name.c_str(), d, static_cast<int64_t>(n));
    }
    empty |= n == 0;
    if (n != 0 && (!checked_mul(product, n, &product) || product > INT64_MAX)) {
      return at_byte(Code::format, at, "tensor '%s': the product of its dimensions overflows", name.c_str());
    }
  }
  *elements = empty ? 0 : product;
  return {};
}

Status Parser::read_type(Tensor* tensor, uint64_t elements) {
  const uint64_t at = in_.offset();
  uint32_t id = 0;
  SELM_TRY(in_.read(&id, "the type of a tensor"));
  const quant::KnownType type = quant::known_type(id);
  const std::string name = printable(tensor->name);
  switch (type.support) {
    case quant::Support::unknown:
      return at_byte(Code::format, at, "tensor '%s' has type %" PRIu32 ", which GGUF does not know",
                     name.c_str(), id);
    case quant::Support::removed:
      return at_byte(Code::format, at, "tensor '%s' has type %" PRIu32 " (%s), which was removed from GGUF",
                     name.c_str(), id, type.info.name);
    case quant::Support::runtime_only:
      return at_byte(Code::format, at, "tensor '%s' has type %" PRIu32 " (%s), which is not for files",
                     name.c_str(), id, type.info.name);
    case quant::Support::other:
      if (unsupported_.ok()) {
        unsupported_ =
            at_byte(Code::unsupported, at, "tensor '%s' has type %" PRIu32 " (%s), which is not read here",
                    name.c_str(), id, type.info.name);
      }
      if (type.info.block_size == 0) return unsupported_;
      break;
    case quant::Support::read:
      break;
  }
  tensor->type = static_cast<quant::Type>(id);
  const uint64_t row = tensor->ne[0];
  if (row % type.info.block_size != 0) {
    return at_byte(Code::format, at,
                   "tensor '%s' (%s): a row of %" PRIu64 " is not a multiple of the block of %" PRIu32,
                   name.c_str(), type.info.name, row, type.info.block_size);
  }
  if (!checked_mul<uint64_t>(elements / type.info.block_size, type.info.block_bytes, &tensor->size)) {
    return at_byte(Code::format, at, "tensor '%s': its size in bytes overflows", name.c_str());
  }
  return {};
}

// Offsets must be the running sum of the sizes, each padded to the alignment, as every writer
// makes them and the reference demands; then no two tensors can share bytes.
Status Parser::place_tensors() {
  if (out_.tensors.empty()) return {};  // then no data section, and no padding before it
  uint64_t data_start = 0;
  if (!checked_align<uint64_t>(in_.offset(), alignment_, &data_start)) data_start = UINT64_MAX;
  uint64_t expected = 0;
  for (size_t i = 0; i < out_.tensors.size(); ++i) {
    Tensor& t = out_.tensors[i];
    const uint64_t field = t.offset;
    const std::string name = printable(t.name);
    if (relative_[i] != expected) {
      return at_byte(Code::format, field,
                     "tensor '%s' lies at offset %" PRIu64 " where %" PRIu64 " was due: %s", name.c_str(),
                     relative_[i], expected,
                     relative_[i] < expected ? "out of order or overlapping" : "out of order or with a gap");
    }
    uint64_t end = 0;
    if (!checked_add(data_start, expected, &t.offset) || !checked_add(t.offset, t.size, &end) ||
        end > bytes_.size()) {
      return at_byte(Code::format, bytes_.size(),
                     "the file ends before the data of tensor '%s' (%" PRIu64 " bytes at %" PRIu64 " wanted)",
                     name.c_str(), t.size, t.offset);
    }
    t.data = bytes_.data() + t.offset;
    if (!checked_add(expected, t.size, &expected) ||
        !checked_align<uint64_t>(expected, alignment_, &expected)) {
      return at_byte(Code::format, field, "tensor '%s': its offset overflows", name.c_str());
    }
  }
  return {};
}

Status Parser::refuse_split() {
  for (const Entry& e : out_.entries) {
    if (e.key != "split.count" || e.is_array || value_type_bytes(e.type) == 0) continue;
    uint64_t count = 0;  // a u16 from every writer; any unsigned width here
    std::memcpy(&count, e.data, value_type_bytes(e.type));
    if (count > 1) {
      return at_byte(Code::unsupported, e.offset,
                     "one of the %" PRIu64 " files of a split model (split.count); merge them first", count);
    }
  }
  return {};
}

}  // namespace

Result<Directory> parse_directory(std::span<const std::byte> bytes) { return Parser(bytes).run(); }

const char* value_type_name(ValueType type) {
  const uint32_t id = static_cast<uint32_t>(type);
  return id < std::size(kValueTypes) ? kValueTypes[id].name : "?";
}

size_t value_type_bytes(ValueType type) {
  const uint32_t id = static_cast<uint32_t>(type);
  return id < std::size(kValueTypes) ? kValueTypes[id].bytes : 0;
}

}  // namespace selm::gguf
